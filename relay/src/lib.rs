//! Carries one guest's TCP and UDP to the host network, without privileges.
//!
//! ```text
//! guest eth0 ─ link ─ sort ─┬─ tcp   smoltcp socket ◄─► flow task ◄─► host socket
//!                           ├─ udp   one host socket per (guest port, destination)
//!                           │        └─ port 53: dns, to the host's resolvers
//!                           └─ ARP, ICMP echo to the gateway: answered here
//! ```
//! Knows frames, addresses and the egress [`Policy`]. Knows no driver, worker or engine.
//!
//! Always true:
//! - A guest's connection is answered only after the host's is made: a refused port is refused in the guest.
//! - A host's TCP socket closes in order only after both ends said their last; in any other case, the end of this
//!   process included, its peer sees a reset.
//! - An oversized frame ends the link: a length-prefixed stream cannot be resynchronised.
//! - At most [`MAX_FLOWS`] flows, with those that are being made and those whose last data the host has yet to take;
//!   beyond it the longest idle one is reset, or the new one refused. No flow outlives [`run`].
//! - Loopback and link-local addresses, and the host's own, are never reached but through the gateway's ports; port 53
//!   of any address leads to the host's resolvers.

mod dns;
mod flow;
mod host;
mod link;
mod packet;
mod policy;
mod stack;
mod tcp;
mod udp;

pub use policy::{Config, Egress, GatewayPort, HostTarget, MacAddress, MacInvalid, Policy};
pub use stack::run;

/// TCP connections of one guest at a time.
pub const MAX_FLOWS: usize = 256;
