//! The kernel interface of the Gunyah drivers, one module per generation.
//!
//! No generation was ever merged into Linux, and three live on in the field. They share the calls of [`common`] and
//! differ in how memory is given to a VM. What looks alike is not always the same: the flag bits of generation B and
//! C disagree, and so no table is shared between them.

pub(crate) mod a;
pub(crate) mod b;
pub(crate) mod c;
pub(crate) mod common;

use std::marker::PhantomData;

/// The number of a call whose argument is the address of a `T` that the kernel reads.
///
/// Tied to the type, so that no other structure can be passed.
pub(crate) struct Request<T> {
    number: u32,
    argument: PhantomData<fn(T)>,
}

impl<T> Request<T> {
    /// As passed to `ioctl`.
    pub(crate) const fn number(&self) -> u32 {
        self.number
    }
}

/// A request number as the kernel's `_IO` makes it.
const fn io(kind: u8, number: u8) -> u32 {
    ioc(0, kind, number, 0)
}

/// A request as the kernel's `_IOW` makes it.
const fn iow<T>(kind: u8, number: u8) -> Request<T> {
    Request { number: ioc(1, kind, number, size_of::<T>()), argument: PhantomData }
}

/// `_IOC` of `asm-generic/ioctl.h`: direction in bits 30..31, size in 16..29, type in 8..15, number in 0..7. The
/// structures are far smaller than the 14 bits of the size.
const fn ioc(direction: u32, kind: u8, number: u8, size: usize) -> u32 {
    (direction << 30) | ((size as u32) << 16) | ((kind as u32) << 8) | number as u32
}
