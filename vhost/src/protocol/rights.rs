//! Receiving bytes and the file descriptors that come with them, none of which is ever lost.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Most descriptors that Linux passes at a time (`SCM_MAX_FD`).
const MAX_PASSED: usize = 253;
/// Bytes of a descriptor's number.
const FD_SIZE: usize = size_of::<i32>();
/// Bytes for that many descriptors and their header, in words for its alignment.
const CONTROL_WORDS: usize = (MAX_PASSED * FD_SIZE + 64).div_ceil(8);

/// Receives what is there, without waiting; the number of bytes, and whether all descriptors have been received.
pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> io::Result<(usize, bool)> {
    let mut control = [0_u64; CONTROL_WORDS];
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: a message header of zeroes is one without address, parts and control data.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control) as _;
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the header names one buffer and one control buffer, both writable and of the sizes given.
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) };
    let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    // The kernel has installed descriptors even if it then ran out of room: those it tells of are ours to close.
    take_rights(&header, fds);
    Ok((received, header.msg_flags & libc::MSG_CTRUNC == 0))
}

/// Takes over the descriptors in the control data of a message that was received.
fn take_rights(header: &libc::msghdr, fds: &mut Vec<OwnedFd>) {
    // SAFETY: the kernel has filled in the header and its control data.
    let mut message = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !message.is_null() {
        // SAFETY: not null, so within the control data and aligned.
        let part = unsafe { &*message };
        if part.cmsg_level == libc::SOL_SOCKET && part.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: computes a size, touches nothing.
            let head = unsafe { libc::CMSG_LEN(0) } as usize;
            let count = (part.cmsg_len as usize).saturating_sub(head) / FD_SIZE;
            // SAFETY: the data of a message within the control data.
            let data = unsafe { libc::CMSG_DATA(message) };
            // SAFETY: the kernel has written `count` descriptors there, and any bytes are an array of bytes.
            let bytes = unsafe { std::slice::from_raw_parts(data, count * FD_SIZE) };
            for fd in bytes.as_chunks::<FD_SIZE>().0 {
                // SAFETY: the kernel has made this descriptor for this process.
                fds.push(unsafe { OwnedFd::from_raw_fd(i32::from_ne_bytes(*fd)) });
            }
        }
        // SAFETY: a message of this header.
        message = unsafe { libc::CMSG_NXTHDR(header, message) };
    }
}
