//! What a frame is, and frames of our own making. Parsing copies out checked values; nothing here keeps state.

use std::net::Ipv4Addr;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, TcpControl, TcpPacket, TcpRepr,
    TcpSeqNumber, UdpPacket,
};

const ETHERNET_BYTES: usize = 14;
const IPV4_BYTES: usize = 20;
const UDP_BYTES: usize = 8;

/// Payload of one IPv4 fragment at an MTU of 1500; a multiple of eight, as RFC 791 wants it.
const FRAGMENT_BYTES: usize = 1480;

/// A TCP connection's or a datagram's ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Ends {
    pub(crate) guest_port: u16,
    pub(crate) address: Ipv4Addr,
    pub(crate) port: u16,
}

/// A frame from the guest, sorted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Sorted<'a> {
    /// ARP, or an echo request to the gateway: the stack answers.
    Stack,
    /// The first segment of a connection.
    Syn {
        ends: Ends,
        sequence: u32,
    },
    /// The guest wants no more of a connection.
    Reset {
        ends: Ends,
        sequence: u32,
    },
    /// Any other segment.
    Segment,
    Datagram {
        ends: Ends,
        payload: &'a [u8],
    },
    Dropped,
}

/// Sorts a frame of the guest. Anything that is not from the guest's own address is dropped.
pub(crate) fn sort(frame: &[u8], guest: Ipv4Addr, gateway: Ipv4Addr) -> Sorted<'_> {
    parse(frame, guest, gateway).unwrap_or(Sorted::Dropped)
}

fn parse(frame: &[u8], guest: Ipv4Addr, gateway: Ipv4Addr) -> Option<Sorted<'_>> {
    let ethernet = EthernetFrame::new_checked(frame).ok()?;
    match ethernet.ethertype() {
        EthernetProtocol::Arp => return Some(Sorted::Stack),
        EthernetProtocol::Ipv4 => {}
        _ => return None,
    }
    let ip = Ipv4Packet::new_checked(ethernet.payload()).ok()?;
    // Fragments are not put together again: a guest's datagrams are to fit the MTU, or to be dropped (RFC 1122, 3.3.2,
    // would have us reassemble; no program we know depends on it).
    if ip.version() != 4 || ip.src_addr() != guest || !ip.verify_checksum() || ip.more_frags() || ip.frag_offset() != 0
    {
        return None;
    }
    let address = ip.dst_addr();
    // The packet borrows the frame, and so do the pieces that leave here.
    let payload =
        frame.get(ETHERNET_BYTES + usize::from(ip.header_len())..ETHERNET_BYTES + usize::from(ip.total_len()))?;
    let (from, to) = (ip.src_addr().into(), address.into());
    match ip.next_header() {
        IpProtocol::Icmp => (address == gateway).then_some(Sorted::Stack),
        IpProtocol::Tcp => {
            let segment = TcpPacket::new_checked(payload).ok()?;
            if !segment.verify_checksum(&from, &to) {
                return None;
            }
            let ends = Ends { guest_port: segment.src_port(), address, port: segment.dst_port() };
            #[expect(clippy::cast_sign_loss, reason = "a sequence number is its bits")]
            let sequence = segment.seq_number().0 as u32;
            Some(match (segment.syn() && !segment.ack(), segment.rst()) {
                (_, true) => Sorted::Reset { ends, sequence },
                (true, false) => Sorted::Syn { ends, sequence },
                (false, false) => Sorted::Segment,
            })
        }
        IpProtocol::Udp => {
            let datagram = UdpPacket::new_checked(payload).ok()?;
            if !datagram.verify_checksum(&from, &to) {
                return None;
            }
            let ends = Ends { guest_port: datagram.src_port(), address, port: datagram.dst_port() };
            Some(Sorted::Datagram { ends, payload: payload.get(UDP_BYTES..usize::from(datagram.len()))? })
        }
        _ => None,
    }
}

/// A segment that ends the guest's data, as two: the data, and the FIN behind it. Any other frame as it is.
///
/// The stack's window can shrink by a few bytes, since what it offers is rounded (RFC 7323, 2.4). Of a segment that then
/// reaches beyond it the stack drops the last bytes, and would take its FIN all the same: the data would look complete.
pub(crate) fn fin_apart(mut frame: Vec<u8>) -> (Vec<u8>, Option<Vec<u8>>) {
    let fin = split_fin(&mut frame);
    (frame, fin)
}

fn split_fin(frame: &mut [u8]) -> Option<Vec<u8>> {
    let ip = Ipv4Packet::new_checked(frame.get(ETHERNET_BYTES..)?).ok()?;
    let (from, to) = (ip.src_addr().into(), ip.dst_addr().into());
    let tcp_at = ETHERNET_BYTES + usize::from(ip.header_len());
    let end = ETHERNET_BYTES + usize::from(ip.total_len());
    let mut segment = TcpPacket::new_checked(frame.get_mut(tcp_at..end)?).ok()?;
    let headers = tcp_at + usize::from(segment.header_len());
    let length = end.checked_sub(headers).filter(|length| *length > 0 && segment.fin())?;
    let after = segment.seq_number() + length;
    segment.set_fin(false);
    segment.fill_checksum(&from, &to);

    let mut fin = frame.get(..headers)?.to_vec();
    let mut ip = Ipv4Packet::new_unchecked(fin.get_mut(ETHERNET_BYTES..)?);
    ip.set_total_len(u16::try_from(headers - ETHERNET_BYTES).ok()?);
    ip.fill_checksum();
    let mut segment = TcpPacket::new_unchecked(fin.get_mut(tcp_at..)?);
    segment.set_seq_number(after);
    segment.set_psh(false);
    segment.set_fin(true);
    segment.fill_checksum(&from, &to);
    Some(fin)
}

/// Where frames to the guest come from and go to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Addressing {
    pub(crate) gateway_mac: EthernetAddress,
    pub(crate) guest_mac: EthernetAddress,
    pub(crate) guest: Ipv4Addr,
}

impl Addressing {
    fn ip_frame(&self, from: Ipv4Addr, protocol: IpProtocol, fragment: Fragment, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; ETHERNET_BYTES + IPV4_BYTES + payload.len()];
        let mut ethernet = EthernetFrame::new_unchecked(&mut frame[..]);
        ethernet.set_src_addr(self.gateway_mac);
        ethernet.set_dst_addr(self.guest_mac);
        ethernet.set_ethertype(EthernetProtocol::Ipv4);
        let mut ip = Ipv4Packet::new_unchecked(ethernet.payload_mut());
        ip.set_version(4);
        ip.set_header_len(20);
        ip.set_total_len(u16::try_from(IPV4_BYTES + payload.len()).unwrap_or(u16::MAX));
        ip.set_ident(fragment.ident);
        ip.clear_flags();
        ip.set_more_frags(fragment.more);
        ip.set_frag_offset(fragment.offset);
        ip.set_hop_limit(64);
        ip.set_next_header(protocol);
        ip.set_src_addr(from);
        ip.set_dst_addr(self.guest);
        ip.payload_mut().copy_from_slice(payload);
        ip.fill_checksum();
        frame
    }

    /// Tells the guest that nobody listens: RST in answer to a SYN (RFC 9293, 3.10.7.1).
    pub(crate) fn refusal(&self, ends: Ends, sequence: u32) -> Vec<u8> {
        #[expect(clippy::cast_possible_wrap, reason = "a sequence number is its bits")]
        let acknowledged = TcpSeqNumber(sequence.wrapping_add(1) as i32);
        let segment = TcpRepr {
            src_port: ends.port,
            dst_port: ends.guest_port,
            control: TcpControl::Rst,
            seq_number: TcpSeqNumber(0),
            ack_number: Some(acknowledged),
            window_len: 0,
            window_scale: None,
            max_seg_size: None,
            sack_permitted: false,
            sack_ranges: [None; 3],
            timestamp: None,
            payload: &[],
        };
        let mut payload = vec![0; segment.buffer_len()];
        let mut packet = TcpPacket::new_unchecked(&mut payload[..]);
        segment.emit(&mut packet, &ends.address.into(), &self.guest.into(), &ChecksumCapabilities::default());
        self.ip_frame(ends.address, IpProtocol::Tcp, Fragment::WHOLE, &payload)
    }

    /// One datagram to the guest, in as many fragments as it takes.
    pub(crate) fn datagram(&self, ends: Ends, ident: u16, payload: &[u8]) -> Vec<Vec<u8>> {
        let Ok(length) = u16::try_from(UDP_BYTES + payload.len()) else { return Vec::new() };
        let mut whole = vec![0; usize::from(length)];
        let mut packet = UdpPacket::new_unchecked(&mut whole[..]);
        packet.set_src_port(ends.port);
        packet.set_dst_port(ends.guest_port);
        packet.set_len(length);
        packet.payload_mut().copy_from_slice(payload);
        // A sum of zero is sent as ones: zero means "no checksum", which strict stacks refuse.
        packet.fill_checksum(&ends.address.into(), &self.guest.into());
        let mut offset = 0u16;
        let mut frames = Vec::new();
        let pieces = whole.chunks(FRAGMENT_BYTES);
        let count = pieces.len();
        for (number, piece) in pieces.enumerate() {
            let fragment = Fragment { ident, more: number + 1 < count, offset };
            frames.push(self.ip_frame(ends.address, IpProtocol::Udp, fragment, piece));
            offset += u16::try_from(piece.len()).unwrap_or(0);
        }
        frames
    }
}

#[derive(Clone, Copy)]
struct Fragment {
    ident: u16,
    more: bool,
    /// Bytes.
    offset: u16,
}

impl Fragment {
    const WHOLE: Self = Self { ident: 0, more: false, offset: 0 };
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GUEST: Ipv4Addr = Ipv4Addr::new(100, 96, 0, 2);
    const GATEWAY: Ipv4Addr = Ipv4Addr::new(100, 96, 0, 1);

    fn addressing() -> Addressing {
        let (gateway_mac, guest_mac) = (EthernetAddress([2, 0, 0, 0, 0, 1]), EthernetAddress([2, 0, 0, 0, 0, 2]));
        Addressing { gateway_mac, guest_mac, guest: GUEST }
    }

    /// What we send, as the guest would send it: the same bytes with the addresses' roles exchanged.
    #[test]
    fn a_datagram_is_read_as_it_was_written() {
        for length in [0, 1, 7, 1472] {
            let payload = vec![7; length];
            let ends = Ends { guest_port: 5, address: GATEWAY, port: 53 };
            let frames = addressing().datagram(ends, 1, &payload);
            assert_eq!(frames.len(), 1);
            let read = sort(&frames[0], GATEWAY, GUEST);
            let ends = Ends { guest_port: 53, address: GUEST, port: 5 };
            assert_eq!(read, Sorted::Datagram { ends, payload: &payload }, "{length}");
        }
    }

    #[test]
    fn a_large_datagram_comes_in_fragments() {
        let ends = Ends { guest_port: 5, address: GATEWAY, port: 53 };
        let frames = addressing().datagram(ends, 1, &[1; 4000]);
        let lengths: Vec<usize> = frames.iter().map(Vec::len).collect();
        assert_eq!(lengths, [1514, 1514, 34 + 4008 - 2960]);
    }

    /// The refusal is a segment without data: here it gets some, and a FIN.
    fn last_segment(data: &[u8]) -> Vec<u8> {
        let mut frame = addressing().refusal(Ends { guest_port: 5, address: GATEWAY, port: 80 }, 1000);
        frame.extend_from_slice(data);
        let total = u16::try_from(frame.len() - ETHERNET_BYTES).expect("a length");
        let mut ip = Ipv4Packet::new_unchecked(&mut frame[ETHERNET_BYTES..]);
        ip.set_total_len(total);
        ip.fill_checksum();
        let mut segment = TcpPacket::new_unchecked(&mut frame[ETHERNET_BYTES + 20..]);
        segment.set_rst(false);
        segment.set_fin(true);
        segment.fill_checksum(&GATEWAY.into(), &GUEST.into());
        frame
    }

    #[test]
    fn data_and_the_end_behind_it_are_two_segments() {
        let frame = last_segment(b"the last bytes");
        let sequence = TcpPacket::new_unchecked(&frame[ETHERNET_BYTES + 20..]).seq_number();
        let (data, fin) = fin_apart(frame);
        let (data, fin) = (data, fin.expect("two"));
        let read = |frame: &[u8]| {
            let ip = Ipv4Packet::new_checked(&frame[ETHERNET_BYTES..]).expect("a packet");
            assert!(ip.verify_checksum());
            let segment = TcpPacket::new_checked(ip.payload()).expect("a segment");
            assert!(segment.verify_checksum(&GATEWAY.into(), &GUEST.into()));
            (segment.seq_number(), segment.fin(), segment.payload().to_vec())
        };
        assert_eq!(read(&data), (sequence, false, b"the last bytes".to_vec()));
        assert_eq!(read(&fin), (sequence + 14, true, Vec::new()));
        let alone = last_segment(b"");
        assert_eq!(fin_apart(alone.clone()), (alone, None));
    }

    proptest! {
        /// However strange the frame, taking its end apart does not fail.
        #[test]
        fn no_segment_is_too_strange_to_be_taken_apart(frame in prop::collection::vec(any::<u8>(), 0..200), at in 0usize..58, value: u8) {
            let _ = fin_apart(frame);
            let mut mangled = last_segment(b"data");
            mangled[at] = value;
            let _ = fin_apart(mangled);
        }

        /// Whatever the guest sends, sorting it ends in an answer.
        #[test]
        fn no_frame_is_too_strange(frame in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = sort(&frame, GUEST, GATEWAY);
        }

        /// The same with headers that are almost right.
        #[test]
        fn no_mangled_frame_is_too_strange(at in 0usize..60, value: u8, length in 0usize..100) {
            let ends = Ends { guest_port: 5, address: GATEWAY, port: 53 };
            let mut frame = addressing().datagram(ends, 1, &[1; 40]).remove(0);
            frame[at] = value;
            frame.truncate(length);
            let _ = sort(&frame, GATEWAY, GUEST);
        }
    }
}
