//! The host's end of the guest's network device.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::thread;

use tokio_util::sync::CancellationToken;
use vmm::{HostTarget, NetworkSpec, VmEvent};

use crate::report::report;

/// Bits of the network that guest and gateway share.
const PREFIX_LEN: u8 = 30;

/// Why the guest's network cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    #[error(transparent)]
    Mac(#[from] relay::MacInvalid),
    #[error("cannot start the relay: {0}")]
    Start(#[from] io::Error),
}

/// Serves the link on a thread of its own until QEMU closes it.
pub(crate) fn serve(link: UnixStream, network: Option<&NetworkSpec>) -> Result<(), NetworkError> {
    match network {
        None => spawn("no-network", move || drain(link))?,
        Some(network) => {
            let config = relay_config(network)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            spawn("relay", move || {
                // The guest lives on without its network; whoever looks after it should know why.
                if let Err(error) = runtime.block_on(relay::run(link, config, CancellationToken::new())) {
                    report(&VmEvent::Warning { message: format!("the guest's network ended: {error}") });
                }
            })?;
        }
    }
    Ok(())
}

/// The device exists, and nobody is there: frames are read, so that the guest's queue never fills, and dropped.
fn drain(mut link: UnixStream) {
    let mut buffer = [0u8; 16 * 1024];
    while matches!(link.read(&mut buffer), Ok(1..)) {}
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.to_owned()).spawn(work).map(drop)
}

fn relay_config(network: &NetworkSpec) -> Result<relay::Config, relay::MacInvalid> {
    let gateway = network.egress.gateway.iter().map(|open| relay::GatewayPort {
        port: open.port,
        target: match &open.target {
            HostTarget::Loopback(port) => relay::HostTarget::Loopback(*port),
            HostTarget::Unix { path, preface } => {
                relay::HostTarget::Unix { path: path.clone(), preface: preface.clone() }
            }
        },
    });
    Ok(relay::Config {
        guest_mac: network.guest_mac.parse()?,
        guest_address: network.guest_address,
        gateway_mac: network.gateway_mac.parse()?,
        gateway_address: network.gateway_address,
        prefix_len: PREFIX_LEN,
        egress: relay::Egress {
            gateway: gateway.collect(),
            private: network.egress.private,
            public: network.egress.public,
        },
        resolvers: Vec::new(),
    })
}
