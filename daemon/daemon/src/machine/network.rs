//! What a guest's network looks like from its two ends.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU16, Ordering};

use guest_protocol::Network as GuestNetwork;
use vmm::{Egress, GatewayPort, NetworkSpec};

/// The gateway's address in every worker's guest.
pub(crate) const GATEWAY: Ipv4Addr = Slot::WORKERS.gateway();

const PREFIX_LEN: u8 = 30;
const MTU: u16 = 1500;

/// What a machine may reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Network {
    None,
    /// Out to public and private addresses; to the engine, as this worker, if one is named.
    Open {
        worker: Option<String>,
    },
}

/// Numbers the addresses of machines, so that a fork can tell that it is not its source. Each machine has a network
/// of its own: two with the same number do not meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot(u16);

impl Slot {
    /// Of all workers: their environment names the gateway.
    pub(crate) const WORKERS: Self = Self(0);

    /// Another number than those before it, until they have all been used.
    pub(crate) fn next() -> Self {
        static NEXT: AtomicU16 = AtomicU16::new(1);
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            if number != Self::WORKERS.0 {
                return Self(number);
            }
        }
    }

    /// Four addresses each, from 100.96.0.0 on.
    const fn address(self, host: u8) -> Ipv4Addr {
        let [_, low_hi, low_mid, low] = (self.0 as u32 * 4 + host as u32).to_be_bytes();
        Ipv4Addr::new(100, 96 + low_hi, low_mid, low)
    }

    const fn gateway(self) -> Ipv4Addr {
        self.address(1)
    }

    fn mac(self, host: u8) -> String {
        let [high, low] = self.0.to_be_bytes();
        format!("02:6d:73:{high:02x}:{low:02x}:{host:02x}")
    }

    pub(super) fn guest(self) -> GuestNetwork {
        GuestNetwork {
            mac: self.mac(2),
            address: self.address(2),
            prefix_len: PREFIX_LEN,
            gateway: self.gateway(),
            dns: self.gateway(),
            mtu: MTU,
            hosts: [("host.iii.internal".to_owned(), self.gateway())].into_iter().collect(),
        }
    }

    pub(super) fn relay(self, engine: Option<GatewayPort>) -> NetworkSpec {
        NetworkSpec {
            guest_mac: self.mac(2),
            guest_address: self.address(2),
            gateway_mac: self.mac(1),
            gateway_address: self.gateway(),
            egress: Egress {
                gateway: engine.into_iter().collect(),
                private: std::env::var_os("III_DENY_PRIVATE_NETWORKS").is_none(),
                public: true,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_have_addresses_of_their_own() {
        assert_eq!(GATEWAY, Ipv4Addr::new(100, 96, 0, 1));
        assert_eq!(Slot(u16::MAX).address(2), Ipv4Addr::new(100, 99, 255, 254));
        assert_eq!(Slot(0x0102).mac(2), "02:6d:73:01:02:02");
        let (one, other) = (Slot::next(), Slot::next());
        assert!(one != other && one.guest().mac != other.guest().mac && one.guest().address != other.guest().address);
    }
}
