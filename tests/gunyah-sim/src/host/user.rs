//! Copies from and to addresses of this process that may be bad, as the kernel's copy_from_user does.

use crate::errno::Errno;

fn vector(address: u64, length: usize) -> libc::iovec {
    libc::iovec { iov_base: std::ptr::with_exposed_provenance_mut(address as usize), iov_len: length }
}

/// Copies `length` bytes in, all or nothing.
pub(crate) fn read(address: u64, length: usize) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0; length];
    let local = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: length };
    let remote = vector(address, length);
    let this = std::process::id().cast_signed();
    // SAFETY: the local vector is `bytes`; a bad remote address is an error, not a fault.
    let copied = unsafe { libc::process_vm_readv(this, &raw const local, 1, &raw const remote, 1, 0) };
    if usize::try_from(copied) == Ok(length) { Ok(bytes) } else { Err(Errno::EFAULT) }
}

/// Copies bytes out, all or nothing as far as the caller can tell.
pub(crate) fn write(address: u64, bytes: &[u8]) -> Result<(), Errno> {
    let local = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let remote = vector(address, bytes.len());
    let this = std::process::id().cast_signed();
    // SAFETY: the local vector is only read from; a bad remote address is an error, not a fault.
    let copied = unsafe { libc::process_vm_writev(this, &raw const local, 1, &raw const remote, 1, 0) };
    if usize::try_from(copied) == Ok(bytes.len()) { Ok(()) } else { Err(Errno::EFAULT) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_addresses_are_errors() {
        assert_eq!(read(0, 4).err(), Some(Errno::EFAULT));
        assert_eq!(write(0, &[1]).err(), Some(Errno::EFAULT));
    }

    #[test]
    fn good_addresses_are_copied() {
        let mut target = [0u8; 4];
        let address = target.as_mut_ptr().expose_provenance() as u64;
        write(address, &[1, 2, 3, 4]).unwrap();
        assert_eq!(read(address, 4).unwrap(), [1, 2, 3, 4]);
        assert_eq!(target, [1, 2, 3, 4]);
    }
}
