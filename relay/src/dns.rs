//! Name resolution by the host's resolvers: queries go through as they are, so every record type works.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::UdpSocket;

/// How long one resolver may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// A query's header; what is shorter is none.
const HEADER_BYTES: usize = 12;

/// The host's resolvers, as `/etc/resolv.conf` lists them.
pub(crate) fn host_resolvers() -> Vec<SocketAddr> {
    parse(&fs::read_to_string("/etc/resolv.conf").unwrap_or_default())
}

fn parse(text: &str) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver")?.trim().parse::<IpAddr>().ok())
        .map(|address| SocketAddr::new(address, 53))
        .collect()
}

/// Asks one resolver after the other. When none answers, says so: a guest that hears nothing waits for long.
pub(crate) async fn resolve(resolvers: &[SocketAddr], query: &[u8]) -> Option<Vec<u8>> {
    if query.len() < HEADER_BYTES {
        return None;
    }
    for resolver in resolvers {
        if let Ok(Ok(answer)) = tokio::time::timeout(PATIENCE, ask(*resolver, query)).await {
            return Some(answer);
        }
    }
    Some(failure(query))
}

async fn ask(resolver: SocketAddr, query: &[u8]) -> std::io::Result<Vec<u8>> {
    let any: SocketAddr = if resolver.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(resolver).await?;
    socket.send(query).await?;
    let mut answer = vec![0; 65_535];
    loop {
        let length = socket.recv(&mut answer).await?;
        // An answer to this question, not to an older one.
        if length >= HEADER_BYTES && answer[..2] == query[..2] {
            answer.truncate(length);
            return Ok(answer);
        }
    }
}

/// SERVFAIL (RFC 1035, 4.1.1) in answer to `query`.
fn failure(query: &[u8]) -> Vec<u8> {
    let mut answer = query.to_vec();
    // A response; recursion stays as desired, and was available.
    answer[2] |= 0x80;
    answer[3] = 0x82;
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_are_read_from_the_hosts_file() {
        let found =
            parse("# a comment\nnameserver 192.0.2.1\nsearch x\n nameserver 2001:db8::1 \nnameserver nonsense\n");
        assert_eq!(
            found,
            ["192.0.2.1:53".parse().expect("an address"), "[2001:db8::1]:53".parse().expect("an address")]
        );
    }

    #[tokio::test]
    async fn a_silent_resolver_becomes_a_failure_answer() {
        let silent = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        tokio::time::pause();
        let query = [1, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        let resolver = silent.local_addr().expect("an address");
        let answer = resolve(&[resolver], &query).await.expect("an answer");
        assert_eq!((&answer[..2], answer[3] & 0xf), (&query[..2], 2));
        assert_eq!(resolve(&[], &[0; 3]).await, None);
    }
}
