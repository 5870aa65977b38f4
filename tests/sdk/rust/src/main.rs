//! Programs with the published crate, one per topic: `sdk-programs calls` runs `calls.rs`.

mod calls;
mod channels;
mod discovery;
mod events;
mod http_functions;
mod http_routes;
mod leaving;
mod mail_queue;
mod rbac;
mod state;
mod stream;
mod traces;
mod triggers;
mod world;

#[tokio::main]
async fn main() -> world::Outcome {
    match std::env::args().nth(1).as_deref() {
        Some("calls") => calls::run().await?,
        Some("channels") => channels::run().await?,
        Some("discovery") => discovery::run().await?,
        Some("events") => events::run().await?,
        Some("http_functions") => http_functions::run().await?,
        Some("http_routes") => http_routes::run().await?,
        Some("leaving") => leaving::run().await?,
        Some("dying") => leaving::die_when_called().await,
        Some("mail_queue") => mail_queue::run().await?,
        Some("rbac") => rbac::run().await?,
        Some("state") => state::run().await?,
        Some("stream") => stream::run().await?,
        Some("traces") => traces::run().await?,
        Some("triggers") => triggers::run().await?,
        other => return Err(format!("no such program: {other:?}").into()),
    }
    println!("ok");
    std::process::exit(0)
}
