//! Tap interfaces of Linux (`Documentation/networking/tuntap.rst`), with virtio headers on their frames.
#![allow(unsafe_code, reason = "ioctls")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use gvmm_plugin_api::tracing::warn;
use nix::errno::Errno;

use super::packet::PacketPort;
use crate::card::HEADER;
use crate::config::{F_GUEST_CSUM, F_GUEST_ECN, F_GUEST_TSO4, F_GUEST_TSO6};

const DEVICE: &str = "/dev/net/tun";

/// ioctls of `linux/if_tun.h`.
mod sys {
    nix::ioctl_write_ptr_bad!(tunsetiff, 0x4004_54ca_u32, libc::ifreq);
    nix::ioctl_read_bad!(tungetiff, 0x8004_54d2_u32, libc::ifreq);
    nix::ioctl_write_int_bad!(tunsetoffload, 0x4004_54d0_u32);
    nix::ioctl_write_ptr_bad!(tunsetvnethdrsz, 0x4004_54d8_u32, libc::c_int);
    nix::ioctl_write_ptr_bad!(tunsetqueue, 0x4004_54d9_u32, libc::ifreq);
    nix::ioctl_read_bad!(siocgifflags, libc::SIOCGIFFLAGS, libc::ifreq);
    nix::ioctl_write_ptr_bad!(siocsifflags, libc::SIOCSIFFLAGS, libc::ifreq);
}

/// Receive offloads (`TUN_F_*` of `linux/if_tun.h`) and the feature that stands for each.
const OFFLOADS: [(u64, i32); 4] = [(F_GUEST_CSUM, 1), (F_GUEST_TSO4, 2), (F_GUEST_TSO6, 4), (F_GUEST_ECN, 8)];

/// Why a tap cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TapError {
    #[error("option 'tap': '{0}' is no name of an interface: at most 15 bytes without '/' and white space")]
    Name(String),
    #[error("{DEVICE}: {0}; load the kernel module tun, or use socket=PATH or user")]
    NoDevice(io::Error),
    #[error("{DEVICE}: {0}; run as root, have somebody pass an open tap by fd=N, or use user")]
    DeviceDenied(io::Error),
    #[error(
        "tap={name}: not allowed; have root make it for you: ip tuntap add dev {name} mode tap user $USER{multi}, \
         or use user"
    )]
    Denied { name: String, multi: &'static str },
    #[error("tap={0}: another program uses it")]
    Busy(String),
    #[error(
        "tap={name}: it was made with other properties; make it by: ip tuntap add dev {name} mode tap{multi}"
    )]
    Shape { name: String, multi: &'static str },
    #[error("it is neither a tap nor a socket ({0})")]
    NotATap(io::Error),
    #[error(
        "interface {0} gives frames without virtio headers: open it with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR"
    )]
    NoHeader(String),
    #[error("interface {name}: {call}: {error}")]
    Call { name: String, call: &'static str, error: io::Error },
}

/// A tap interface.
#[derive(Debug)]
pub(crate) struct Tap {
    name: String,
    /// A handle of each queue.
    queues: Vec<OwnedFd>,
    /// Offloads may be turned on.
    offload: bool,
    /// How many queues are attached.
    attached: Mutex<u16>,
}

impl Tap {
    /// Opens an interface with so many queues, or makes it; only the first queue is attached.
    pub(crate) fn open(
        name: &str,
        queues: u16,
        offload: bool,
    ) -> Result<(Self, Vec<Arc<PacketPort>>), TapError> {
        let mut request = request(name).ok_or_else(|| TapError::Name(name.to_owned()))?;
        let existed = Path::new("/sys/class/net").join(name).exists();
        let multi = if queues > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
        request.ifr_ifru.ifru_flags =
            (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | multi) as libc::c_short;
        let mut tap =
            Self { name: name.to_owned(), queues: Vec::new(), offload, attached: Mutex::new(queues) };
        let mut ports = Vec::new();
        for _ in 0..queues {
            let (queue, port) = tap.open_queue(&request, multi != 0)?;
            tap.queues.push(queue);
            ports.push(Arc::new(port));
        }
        if !existed {
            tap.bring_up()?;
        }
        tap.attach(1);
        Ok((tap, ports))
    }

    /// Takes over an open tap.
    pub(crate) fn adopt(fd: OwnedFd, offload: bool) -> Result<(Self, PacketPort), TapError> {
        let request = get_request(&fd).map_err(TapError::NotATap)?;
        let name = name_of(&request);
        // SAFETY: TUNGETIFF has filled in the flags.
        let flags = i32::from(unsafe { request.ifr_ifru.ifru_flags });
        let wanted = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        if flags & wanted != wanted {
            return Err(TapError::NoHeader(name));
        }
        let copied = fd.try_clone();
        let call = |error| TapError::Call { name: name.clone(), call: "dup", error };
        let copied = copied.map_err(call)?;
        let tap = Self { name: name.clone(), queues: vec![copied], offload, attached: Mutex::new(1) };
        tap.set_up(&fd)?;
        Ok((tap, PacketPort::new(fd, true, false).map_err(call)?))
    }

    fn open_queue(&self, request: &libc::ifreq, multi: bool) -> Result<(OwnedFd, PacketPort), TapError> {
        let device = File::options().read(true).write(true).open(DEVICE).map_err(|error| {
            let denied = error.kind() == io::ErrorKind::PermissionDenied;
            if denied { TapError::DeviceDenied(error) } else { TapError::NoDevice(error) }
        })?;
        // SAFETY: the request holds a name and flags.
        unsafe { sys::tunsetiff(device.as_raw_fd(), request) }.map_err(|error| self.refusal(error, multi))?;
        let fd = OwnedFd::from(device);
        self.set_up(&fd)?;
        let copy = fd.try_clone().map_err(|error| self.failed("dup", error))?;
        Ok((copy, PacketPort::new(fd, true, false).map_err(|error| self.failed("fcntl", error))?))
    }

    fn refusal(&self, error: Errno, multi: bool) -> TapError {
        let name = self.name.clone();
        let multi = if multi { " multi_queue" } else { "" };
        match error {
            Errno::EPERM | Errno::EACCES => TapError::Denied { name, multi },
            Errno::EBUSY => TapError::Busy(name),
            Errno::EINVAL => TapError::Shape { name, multi },
            error => self.failed("TUNSETIFF", error.into()),
        }
    }

    fn failed(&self, call: &'static str, error: io::Error) -> TapError {
        TapError::Call { name: self.name.clone(), call, error }
    }

    /// Frames get headers of the size that virtio 1 has, and no offloads before the driver asks for them.
    fn set_up(&self, queue: &OwnedFd) -> Result<(), TapError> {
        let size = HEADER as libc::c_int;
        // SAFETY: the argument is an int.
        unsafe { sys::tunsetvnethdrsz(queue.as_raw_fd(), &size) }
            .map_err(|error| self.failed("TUNSETVNETHDRSZ", error.into()))?;
        // SAFETY: the argument is a number.
        unsafe { sys::tunsetoffload(queue.as_raw_fd(), 0) }
            .map_err(|error| self.failed("TUNSETOFFLOAD", error.into()))?;
        Ok(())
    }

    /// Turns an interface that was just made on: nobody else could have.
    fn bring_up(&self) -> Result<(), TapError> {
        let failed = |call, error: Errno| self.failed(call, error.into());
        let socket = nix::sys::socket::socket(
            nix::sys::socket::AddressFamily::Inet,
            nix::sys::socket::SockType::Datagram,
            nix::sys::socket::SockFlag::SOCK_CLOEXEC,
            None,
        );
        let socket = socket.map_err(|error| failed("socket", error))?;
        let Some(mut request) = request(&self.name) else { return Ok(()) };
        // SAFETY: the request holds a name and has room for the answer.
        unsafe { sys::siocgifflags(socket.as_raw_fd(), &mut request) }
            .map_err(|error| failed("SIOCGIFFLAGS", error))?;
        // SAFETY: SIOCGIFFLAGS has filled in the flags.
        let flags = unsafe { request.ifr_ifru.ifru_flags };
        request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
        // SAFETY: the request holds a name and flags.
        unsafe { sys::siocsifflags(socket.as_raw_fd(), &request) }
            .map_err(|error| failed("SIOCSIFFLAGS", error))?;
        Ok(())
    }

    /// Whether offloads may be offered to the driver.
    pub(crate) fn offload(&self) -> bool {
        self.offload
    }

    /// Turns receive offloads on as far as the features have them.
    pub(crate) fn set_offloads(&self, features: u64) {
        let flags = offload_flags(features);
        // The offloads belong to the interface, whichever queue sets them.
        if let Some(queue) = self.queues.first()
            // SAFETY: the argument is a number.
            && let Err(error) = unsafe { sys::tunsetoffload(queue.as_raw_fd(), flags) }
        {
            warn!("interface {}: TUNSETOFFLOAD: {}", self.name, error.desc());
        }
    }

    /// Attaches the first so many queues and detaches the others, so that the host spreads frames over the former.
    pub(crate) fn attach(&self, count: u16) {
        let mut attached = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
        for (index, queue) in (0..).zip(&self.queues) {
            let (now, wanted) = (index < *attached, index < count);
            if now == wanted {
                continue;
            }
            let Some(mut request) = request(&self.name) else { return };
            let flag = if wanted { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
            request.ifr_ifru.ifru_flags = flag as libc::c_short;
            // SAFETY: the request holds flags.
            if let Err(error) = unsafe { sys::tunsetqueue(queue.as_raw_fd(), &request) } {
                warn!("interface {}: TUNSETQUEUE of queue {index}: {}", self.name, error.desc());
            }
        }
        *attached = count;
    }
}

/// Flags for receive offloads. The kernel refuses segmentation without checksums and ECN without segmentation.
fn offload_flags(features: u64) -> i32 {
    let mut features = features;
    if features & F_GUEST_CSUM == 0 {
        return 0;
    }
    if features & (F_GUEST_TSO4 | F_GUEST_TSO6) == 0 {
        features &= !F_GUEST_ECN;
    }
    OFFLOADS.iter().filter(|(feature, _)| features & feature != 0).map(|(_, flag)| flag).sum()
}

/// A handle of its own for a descriptor of the command line.
pub(crate) fn duplicate(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: a number that is no open descriptor is an error of the call.
    let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// The interface of a tap.
pub(crate) fn interface_name(fd: &OwnedFd) -> io::Result<String> {
    get_request(fd).map(|request| name_of(&request))
}

fn get_request(fd: &OwnedFd) -> io::Result<libc::ifreq> {
    let mut request = empty_request();
    // SAFETY: the request has room for the answer.
    unsafe { sys::tungetiff(fd.as_raw_fd(), &mut request) }?;
    Ok(request)
}

fn empty_request() -> libc::ifreq {
    // SAFETY: all zero is a valid value of each of its fields.
    unsafe { std::mem::zeroed() }
}

/// A request for an interface; `None` when that is no name of one.
fn request(name: &str) -> Option<libc::ifreq> {
    let mut request = empty_request();
    let odd = |byte: u8| byte == b'/' || byte == b'%' || byte.is_ascii_whitespace() || byte == 0;
    if name.is_empty()
        || name.len() >= request.ifr_name.len()
        || name.bytes().any(odd)
        || name.starts_with('.')
    {
        return None;
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Some(request)
}

fn name_of(request: &libc::ifreq) -> String {
    let bytes = request.ifr_name.iter().take_while(|byte| **byte != 0).map(|byte| byte.to_ne_bytes()[0]);
    String::from_utf8_lossy(&bytes.collect::<Vec<u8>>()).into_owned()
}

#[cfg(test)]
#[path = "tap_test.rs"]
mod tests;
