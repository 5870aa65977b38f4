//! Who the guest is, and which host sockets it may reach.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::str::FromStr;

/// One guest's network.
#[derive(Debug, Clone)]
pub struct Config {
    pub guest_mac: MacAddress,
    pub guest_address: Ipv4Addr,
    pub gateway_mac: MacAddress,
    pub gateway_address: Ipv4Addr,
    pub prefix_len: u8,
    pub egress: Egress,
    /// Where names are resolved; empty means those of `/etc/resolv.conf`.
    pub resolvers: Vec<std::net::SocketAddr>,
}

/// What is open.
#[derive(Debug, Clone, Default)]
pub struct Egress {
    pub gateway: Vec<GatewayPort>,
    /// RFC 1918 and RFC 6598.
    pub private: bool,
    pub public: bool,
}

/// One open port of the gateway.
#[derive(Debug, Clone)]
pub struct GatewayPort {
    pub port: u16,
    pub target: HostTarget,
}

/// Where a connection to a gateway port ends.
#[derive(Debug, Clone)]
pub enum HostTarget {
    /// On 127.0.0.1.
    Loopback(u16),
    /// `preface` is written first.
    Unix { path: PathBuf, preface: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MacAddress(pub [u8; 6]);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no MAC address")]
pub struct MacInvalid(String);

impl FromStr for MacAddress {
    type Err = MacInvalid;

    fn from_str(text: &str) -> Result<Self, MacInvalid> {
        let invalid = || MacInvalid(text.to_owned());
        let mut mac = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut mac {
            let part = parts.next().ok_or_else(invalid)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| invalid())?;
        }
        if parts.next().is_some() { Err(invalid()) } else { Ok(Self(mac)) }
    }
}

/// What becomes of a connection or datagram.
#[derive(Debug, Clone)]
pub(crate) enum Verdict {
    Address(Ipv4Addr),
    Target(HostTarget),
    Denied,
}

/// Decides by destination.
#[derive(Debug, Clone)]
pub struct Policy {
    gateway: Ipv4Addr,
    egress: Egress,
    /// The host's own addresses: what listens there was not offered to guests.
    own: Vec<Ipv4Addr>,
}

impl Policy {
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let own = nix::ifaddrs::getifaddrs().map(|addresses| {
            addresses
                .filter_map(|found| found.address.as_ref().and_then(|a| a.as_sockaddr_in().map(|a| a.ip())))
                .collect()
        });
        Self { gateway: config.gateway_address, egress: config.egress.clone(), own: own.unwrap_or_default() }
    }

    pub(crate) fn judge(&self, address: Ipv4Addr, port: u16) -> Verdict {
        if address == self.gateway {
            let open = self.egress.gateway.iter().find(|open| open.port == port);
            return open.map_or(Verdict::Denied, |open| Verdict::Target(open.target.clone()));
        }
        if self.allows(address) { Verdict::Address(address) } else { Verdict::Denied }
    }

    fn allows(&self, address: Ipv4Addr) -> bool {
        let [first, second, ..] = address.octets();
        let never = address.is_loopback()
            || address.is_link_local()
            || address.is_multicast()
            || address.is_broadcast()
            || first == 0
            || first >= 240
            || self.own.contains(&address);
        let shared = first == 100 && (64..128).contains(&second);
        if never {
            false
        } else if address.is_private() || shared {
            self.egress.private
        } else {
            self.egress.public
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(egress: Egress, address: &str, port: u16, open: bool) {
        let gateway = Ipv4Addr::new(100, 96, 0, 1);
        let policy = Policy { gateway, egress, own: vec![Ipv4Addr::new(192, 0, 2, 7)] };
        let verdict = policy.judge(address.parse().expect("an address"), port);
        assert_eq!(!matches!(verdict, Verdict::Denied), open, "{address}:{port}");
    }

    #[test]
    fn what_is_not_open_is_closed() {
        let all = || Egress {
            gateway: vec![GatewayPort { port: 49134, target: HostTarget::Loopback(1) }],
            private: true,
            public: true,
        };
        check(all(), "100.96.0.1", 49134, true);
        check(all(), "100.96.0.1", 22, false);
        check(all(), "198.51.100.1", 443, true);
        check(all(), "10.1.2.3", 443, true);
        for never in
            ["127.0.0.1", "127.9.9.9", "169.254.169.254", "0.0.0.0", "224.0.0.1", "255.255.255.255", "240.0.0.1"]
        {
            check(all(), never, 80, false);
        }
        check(all(), "192.0.2.7", 80, false);
        for private in ["10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1"] {
            check(Egress { private: false, ..all() }, private, 80, false);
        }
        check(Egress { public: false, ..all() }, "198.51.100.1", 443, false);
    }
}
