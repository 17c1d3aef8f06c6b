//! What the other end of a network card does at worst: malformed frames, and on a stream lengths that are none.

use std::io::{ErrorKind, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use nix::libc;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::frames;
use crate::pattern::Random;

/// Bytes of the header before a frame on a packet socket with `PACKET_VNET_HDR` (virtio 1.2, 5.1.6, without `num_buffers`).
const VNET_HEADER: usize = 10;
/// Kinds of segmentation that such a header may name, known and unknown.
const GSO_TYPES: [u8; 6] = [0, 1, 3, 4, 5, 0x81];

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Interface of the host, a tap at whose other end the card is
    #[arg(long, required_unless_present = "socket", conflicts_with = "socket")]
    interface: Option<String>,
    /// Socket to listen on for a card; after the flood its guest can ping --address
    #[arg(long, requires = "address")]
    socket: Option<PathBuf>,
    /// Address of the host behind the socket
    #[arg(long)]
    address: Option<Ipv4Addr>,
    /// Hardware address of the card
    #[arg(long, value_parser = hardware_address)]
    card: [u8; 6],
    /// Frames to send
    #[arg(long, default_value_t = 500)]
    frames: u32,
    /// Seed of the random numbers
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Prints `@listening` once a card can connect, and `@flooded N frames` at the end of the flood.
pub(crate) fn run(options: &Options) -> Result<()> {
    match (&options.interface, &options.socket, options.address) {
        (Some(interface), ..) => flood_interface(options, interface),
        (None, Some(path), Some(address)) => flood_stream(options, path, address),
        _ => bail!("neither an interface nor a socket with an address"),
    }
}

fn hardware_address(text: &str) -> Result<[u8; 6]> {
    let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<Vec<_>, _>>()?;
    bytes.try_into().map_err(|_| anyhow::anyhow!("not six bytes"))
}

/// Sends through the host's network stack, which lets many malformed frames pass and not all malformed headers.
fn flood_interface(options: &Options, interface: &str) -> Result<()> {
    let socket = PacketSocket::open(interface).with_context(|| format!("cannot send to {interface}"))?;
    let mut random = Random::new(options.seed);
    let mut sent = 0;
    for _ in 0..options.frames {
        let mut frame = vnet_header(&mut random).to_vec();
        frame.extend(frames::malformed(&mut random, options.card));
        sent += u32::from(socket.send(&frame));
    }
    ensure!(sent > options.frames / 4, "the host let only {sent} of {} frames pass", options.frames);
    println!("@flooded {sent} frames");
    Ok(())
}

/// No header in one of two cases; else a checksum to fill in and segments to make, wherever and however long.
fn vnet_header(random: &mut Random) -> [u8; VNET_HEADER] {
    let mut header = [0; VNET_HEADER];
    if random.below(2) == 0 {
        header[0] = random.below(4) as u8;
        header[1] = GSO_TYPES[random.below(GSO_TYPES.len() as u64) as usize];
        for field in header[2..].chunks_mut(2) {
            // Length of the headers, of a segment, start and place of the checksum.
            field.copy_from_slice(&(random.below(1600) as u16).to_le_bytes());
        }
    }
    header
}

struct PacketSocket(OwnedFd);

impl PacketSocket {
    fn open(interface: &str) -> Result<Self> {
        let fd = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
        let on: libc::c_int = 1;
        let (level, option) = (libc::SOL_PACKET, libc::PACKET_VNET_HDR);
        // SAFETY: the value is an int of the length given.
        let set = unsafe {
            libc::setsockopt(fd.as_raw_fd(), level, option, (&raw const on).cast(), size_of_val(&on) as u32)
        };
        nix::errno::Errno::result(set).context("PACKET_VNET_HDR")?;
        // SAFETY: all zero is a valid value of each of its fields.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_ifindex = i32::try_from(if_nametoindex(interface)?)?;
        // SAFETY: the address is of the length given.
        let bound =
            unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as u32) };
        nix::errno::Errno::result(bound).context("bind")?;
        Ok(Self(fd))
    }

    /// Whether the host let it pass.
    fn send(&self, frame: &[u8]) -> bool {
        nix::unistd::write(&self.0, frame).is_ok()
    }
}

/// Frames, then connections with all that a stream can have wrong, then one on which pings are answered until it ends.
fn flood_stream(options: &Options, path: &Path, address: Ipv4Addr) -> Result<()> {
    let listener =
        UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    println!("@listening");
    let mut random = Random::new(options.seed);
    let mut stream = listener.accept()?.0;
    for _ in 0..options.frames {
        let frame = frames::malformed(&mut random, options.card);
        send(&mut stream, &frame)?;
    }
    for len in [u32::MAX, frames::LONGEST as u32 + 1] {
        // The card hangs up, maybe before it has read all.
        let _ = stream.write_all(&[&len.to_be_bytes()[..], &[0x55; 64]].concat());
        wait_for_the_end(&mut stream)?;
        stream = next(&listener, stream)?;
    }
    // Half a frame, and half a length.
    stream.write_all(&[&1000_u32.to_be_bytes()[..], &[0x55; 500]].concat())?;
    stream = next(&listener, stream)?;
    stream.write_all(&[0, 0])?;
    stream = next(&listener, stream)?;
    println!("@flooded {} frames", options.frames);
    answer_pings(stream, address)
}

/// Ends a connection and takes the next one.
fn next(listener: &UnixListener, last: UnixStream) -> Result<UnixStream> {
    drop(last);
    Ok(listener.accept()?.0)
}

fn send(stream: &mut UnixStream, frame: &[u8]) -> Result<()> {
    let len = u32::try_from(frame.len())?.to_be_bytes();
    stream.write_all(&[&len[..], frame].concat()).context("sending a frame")
}

fn wait_for_the_end(stream: &mut UnixStream) -> Result<()> {
    match std::io::copy(stream, &mut std::io::sink()) {
        Err(error) if error.kind() != ErrorKind::ConnectionReset => Err(error.into()),
        _ => Ok(()),
    }
}

fn answer_pings(mut stream: UnixStream, address: Ipv4Addr) -> Result<()> {
    let mut len = [0; 4];
    while stream.read_exact(&mut len).is_ok() {
        let mut frame = vec![0; u32::from_be_bytes(len) as usize];
        ensure!(frame.len() <= frames::LONGEST, "the card sent a frame of {} bytes", frame.len());
        stream.read_exact(&mut frame)?;
        if let Some(reply) = frames::answer(&frame, address) {
            send(&mut stream, &reply)?;
        }
    }
    Ok(())
}
