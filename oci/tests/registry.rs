//! Pulls from a real registry server on the loopback, with images that skopeo pushed.

mod support;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use oci::{Digest, ImageRef, PullError, Refresh, RegistryOptions, Rootfs, Store, StoreOptions};
use support::reader::Image;
use support::{IMAGE_BYTES, Layer, Packing, World, fsck, program};

/// A registry server with a data directory of its own; it ends with this value.
struct Registry {
    process: Child,
    address: String,
    data: PathBuf,
}

impl Registry {
    fn start(world: &World, htpasswd: Option<&str>) -> Self {
        let server = program("docker-registry");
        let address = free_address();
        let data = world.directory.path().join("registry");
        let mut config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{address}\"}}\n",
            data.display()
        );
        if let Some(line) = htpasswd {
            let path = world.directory.path().join("htpasswd");
            std::fs::write(&path, format!("{line}\n")).unwrap();
            config += &format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", path.display());
        }
        let config_path = world.directory.path().join("registry.yml");
        std::fs::write(&config_path, config).unwrap();
        let process = Command::new(server)
            .arg("serve")
            .arg(&config_path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let registry = Self { process, address, data };
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(&registry.address).is_err() {
            assert!(Instant::now() < deadline, "the registry does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        registry
    }

    fn push(&self, layout: &Path, name: &str, credentials: Option<&str>) {
        let mut skopeo = Command::new(program("skopeo"));
        skopeo.args(["copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false", "--all"]);
        if let Some(credentials) = credentials {
            skopeo.args(["--dest-creds", credentials]);
        }
        let pushed = skopeo.arg(format!("oci:{}", layout.display())).arg(format!("docker://{}/{name}", self.address));
        let output = pushed.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.data.join("docker/registry/v2/blobs/sha256").join(&hex[..2]).join(hex).join("data")
    }

    fn image(&self, name: &str) -> ImageRef {
        ImageRef::parse(&format!("{}/{name}", self.address)).unwrap()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn free_address() -> String {
    format!("127.0.0.1:{}", test_rig::free_port())
}

fn store(world: &World, registry: RegistryOptions) -> Store {
    Store::open(&world.store_dir(), StoreOptions { image_bytes: IMAGE_BYTES, registry }).unwrap()
}

async fn pull(world: &World, image: &ImageRef, refresh: Refresh) -> Result<Rootfs, PullError> {
    store(world, RegistryOptions::default()).ensure(image, refresh, &|_| ()).await
}

fn sample(world: &World, text: &str) -> support::Manifest {
    let noise: Vec<u8> = (0..300_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let layers = (0..5).map(|i| Layer::new().file(&format!("layer-{i}"), &noise[i * 1000..]));
    world.write([Layer::base().file("me", text)].into_iter().chain(layers).collect(), Packing::Gzip)
}

#[tokio::test]
async fn an_image_is_pulled_kept_and_refreshed_on_request() {
    let world = World::new();
    let registry = Registry::start(&world, None);
    let first = sample(&world, "one");
    registry.push(&world.layout(), "team/app:1", None);
    let image = registry.image("team/app:1");
    let ready = pull(&world, &image, Refresh::IfMissing).await.unwrap();
    assert_eq!(ready.digest, first.digest);
    let merged = Image::open(&ready.path);
    assert_eq!(merged.text("me"), "one");
    assert_eq!(merged.items["layer-4"].size, 296_000);
    fsck(&ready.path);

    let second = sample(&world, "two");
    registry.push(&world.layout(), "team/app:1", None);
    assert_eq!(pull(&world, &image, Refresh::IfMissing).await.unwrap().digest, first.digest);
    assert_eq!(pull(&world, &image, Refresh::Always).await.unwrap().digest, second.digest);
    let pinned = registry.image(&format!("team/app@{}", first.digest));
    assert_eq!(pull(&world, &pinned, Refresh::Always).await.unwrap().digest, first.digest);

    drop(registry);
    assert_eq!(pull(&world, &image, Refresh::IfMissing).await.unwrap().digest, second.digest);
    assert_eq!(pull(&world, &image, Refresh::Always).await.unwrap_err().code(), "REGISTRY_UNREACHABLE");
}

#[tokio::test]
async fn a_damaged_blob_is_tried_three_times_and_refused() {
    let world = World::new();
    let registry = Registry::start(&world, None);
    let manifest = sample(&world, "x");
    registry.push(&world.layout(), "app:1", None);
    let path = registry.blob(&manifest.layers[2]);
    let mut content = std::fs::read(&path).unwrap();
    content[1000] ^= 0xff;
    std::fs::write(&path, content).unwrap();
    let before = Instant::now();
    let error = pull(&world, &registry.image("app:1"), Refresh::IfMissing).await.unwrap_err();
    assert!(matches!(&error, PullError::DigestMismatch { what, .. } if what == "layer 3"), "{error}");
    assert!(before.elapsed() >= Duration::from_secs(4), "waits of 1 s and 3 s lie between the attempts");
    world.assert_nothing_left();
}

#[tokio::test]
async fn unknown_images_and_missing_platforms_are_told_apart() {
    let world = World::new();
    let registry = Registry::start(&world, None);
    sample(&world, "x");
    registry.push(&world.layout(), "app:1", None);
    for name in ["app:2", "nothing/here:1"] {
        let error = pull(&world, &registry.image(name), Refresh::IfMissing).await.unwrap_err();
        assert_eq!(error.code(), "IMAGE_NOT_FOUND", "{name}: {error}");
        assert!(error.to_string().contains(name), "{error}");
    }
    world.assert_nothing_left();
}

#[tokio::test]
async fn basic_credentials_come_from_dockers_configuration() {
    let world = World::new();
    // ada:lovelace, as `htpasswd -nbB` writes it.
    let line = "ada:$2b$05$abcdefghijklmnopqrstuuugyJgZetmHGvxwCJ1rpgM8bgT8KJ8.i";
    let registry = Registry::start(&world, Some(line));
    let manifest = sample(&world, "x");
    registry.push(&world.layout(), "app:1", Some("ada:lovelace"));
    let image = registry.image("app:1");
    let error = pull(&world, &image, Refresh::IfMissing).await.unwrap_err();
    assert_eq!(error.code(), "REGISTRY_DENIED", "{error}");

    let docker_config = world.directory.path().join("config.json");
    let options = RegistryOptions { docker_config: Some(docker_config.clone()), ..RegistryOptions::default() };
    let log_in = |auth: &str| {
        let mut file = std::fs::File::create(&docker_config).unwrap();
        write!(file, r#"{{"auths":{{"{}":{{"auth":"{auth}"}}}}}}"#, registry.address).unwrap();
    };
    // ada:babbage
    log_in("YWRhOmJhYmJhZ2U=");
    let error = store(&world, options.clone()).ensure(&image, Refresh::IfMissing, &|_| ()).await.unwrap_err();
    assert_eq!(error.code(), "REGISTRY_DENIED", "{error}");
    assert!(!error.to_string().contains("babbage"), "{error}");
    log_in("YWRhOmxvdmVsYWNl");
    let ready = store(&world, options).ensure(&image, Refresh::IfMissing, &|_| ()).await.unwrap();
    assert_eq!(ready.digest, manifest.digest);
}

#[tokio::test]
async fn mirrors_are_asked_first_and_passed_over_when_they_fail() {
    let world = World::new();
    let registry = Registry::start(&world, None);
    let manifest = sample(&world, "x");
    registry.push(&world.layout(), "library/app:latest", None);
    let mirrors = [("docker.io".to_owned(), vec![free_address(), registry.address.clone()])].into();
    let options = RegistryOptions { mirrors, ..RegistryOptions::default() };
    let image = ImageRef::parse("app").unwrap();
    let ready = store(&world, options).ensure(&image, Refresh::IfMissing, &|_| ()).await.unwrap();
    assert_eq!(ready.digest, manifest.digest);
}

#[tokio::test]
async fn a_registry_that_is_not_there_fails_soon_with_its_name() {
    let world = World::new();
    let address = free_address();
    let before = Instant::now();
    let image = ImageRef::parse(&format!("{address}/app:1")).unwrap();
    let error = pull(&world, &image, Refresh::IfMissing).await.unwrap_err();
    assert_eq!(error.code(), "REGISTRY_UNREACHABLE", "{error}");
    assert!(error.to_string().contains(&address) && error.hint().is_some(), "{error}");
    assert!(before.elapsed() < Duration::from_secs(15));
    world.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_pulls_of_one_image_ask_for_each_layer_once() {
    let world = World::new();
    let registry = Registry::start(&world, None);
    sample(&world, "x");
    registry.push(&world.layout(), "app:1", None);
    let image = registry.image("app:1");
    let (one, other) = (store(&world, RegistryOptions::default()), store(&world, RegistryOptions::default()));
    let all = (0..20).map(|i| if i % 2 == 0 { &one } else { &other }.ensure(&image, Refresh::Always, &|_| ()));
    let ready = futures_util::future::try_join_all(all).await.unwrap();
    assert!(ready.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(one.list().unwrap().len(), 1);
}
