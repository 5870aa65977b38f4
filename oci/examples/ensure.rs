//! Makes an image ready and says where it is: `cargo run -p oci --example ensure -- DIR REFERENCE`.

use std::process::ExitCode;

use oci::{ImageRef, Progress, PullError, Refresh, RegistryOptions, Store, StoreOptions};

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [dir, reference] = arguments.as_slice() else {
        eprintln!("usage: ensure DIR REFERENCE");
        return ExitCode::from(2);
    };
    let image = match ImageRef::parse(reference) {
        Ok(image) => image,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    let options = StoreOptions { image_bytes: 8 << 30, registry: RegistryOptions::from_env() };
    let show = |now: Progress| eprintln!("{:?} {}/{}", now.phase, now.bytes_done, now.bytes_total);
    let outcome = match Store::open(dir.as_ref(), options) {
        Ok(store) => store.ensure(&image, Refresh::Always, &show).await,
        Err(error) => Err(PullError::from(error)),
    };
    match outcome {
        Ok(ready) => {
            println!("{} {}", ready.digest, ready.path.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            let mut cause: Option<&dyn std::error::Error> = Some(&error);
            while let Some(now) = cause {
                eprintln!("error: {now}");
                cause = now.source();
            }
            eprintln!("code:  {}", error.code());
            error.hint().iter().for_each(|hint| eprintln!("hint:  {hint}"));
            ExitCode::FAILURE
        }
    }
}
