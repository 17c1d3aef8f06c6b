//! The functions this library puts in front of libc's. Each decides whether a call is about the simulated driver and
//! hands it there, or passes it on untouched.
//!
//! Functions that are variadic in C are defined with the arguments they can have: x86-64 and AArch64 Linux pass integer
//! arguments of both kinds in the same registers.
//!
//! # Safety
//!
//! Every function here has the contract of the libc function of its name.

#![cfg_attr(test, allow(dead_code, reason = "the tests run in front of the real libc"))]
#![allow(clippy::missing_safety_doc, reason = "stated for all of them above")]

use std::ffi::CStr;

use libc::{c_char, c_int, c_long, c_uint, c_ulong, c_void, mode_t, off_t, size_t};

use crate::abi::{self, Generation, NODE};
use crate::config::{Config, Node};
use crate::device::{self, Object, strike};
use crate::errno::Errno;
use crate::inject::MMAP;
use crate::trace::{self, Call};

use super::guard::Inside;
use super::{guest_mem, lend, objects, real};

fn set_errno(errno: Errno) {
    // SAFETY: the location is this thread's own.
    let location = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    unsafe { *location = errno.0 };
}

fn answer<T: From<i8>>(result: Result<T, Errno>) -> T {
    result.unwrap_or_else(|errno| {
        set_errno(errno);
        T::from(-1)
    })
}

/// The settings, if this call comes from the program and a simulation is on.
fn active() -> Option<&'static Config> {
    if Inside::is() { None } else { Config::get() }
}

/// The settings, if the path is the node's.
///
/// # Safety
///
/// `path` is null or a C string.
unsafe fn node(path: *const c_char) -> Option<&'static Config> {
    let config = active()?;
    if path.is_null() {
        return None;
    }
    // SAFETY: the caller vouches for the string.
    let path = unsafe { CStr::from_ptr(path) };
    (path.to_bytes() == NODE.as_bytes()).then_some(config)
}

fn open_node(config: &'static Config, flags: c_int) -> c_int {
    let _inside = Inside::enter();
    crate::report::arm();
    // O_PATH and the like are not for this node.
    answer(device::open(config, flags & libc::O_CLOEXEC != 0))
}

macro_rules! open_functions {
    ($($name:ident($($directory:ident)?);)*) => {$(
        #[cfg_attr(not(test), unsafe(no_mangle))]
        pub(crate) unsafe extern "C" fn $name(
            $($directory: c_int,)? path: *const c_char, flags: c_int, mode: mode_t,
        ) -> c_int {
            // SAFETY: libc's contract.
            match unsafe { node(path) } {
                Some(config) => open_node(config, flags),
                // SAFETY: passed on as it came.
                None => unsafe { real::$name($($directory,)? path, flags, mode) },
            }
        }
    )*};
}

open_functions! {
    open();
    open64();
    openat(directory);
    openat64(directory);
}

/// What asking about the node's path finds: the real `/dev/null` stands in for a character device.
fn stand_in(config: &Config) -> Result<*const c_char, Errno> {
    match config.node {
        Node::Absent => Err(Errno::ENOENT),
        _ => Ok(c"/dev/null".as_ptr()),
    }
}

fn mode(config: &Config) -> u32 {
    // A node nobody may open, or root's alone (rule 1.7).
    if config.node == Node::Forbidden { 0o000 } else { 0o600 }
}

macro_rules! stat_functions {
    ($($name:ident($($directory:ident)?, $type:ty $(, $flags:ident)?);)*) => {$(
        #[cfg_attr(not(test), unsafe(no_mangle))]
        pub(crate) unsafe extern "C" fn $name(
            $($directory: c_int,)? path: *const c_char, out: *mut $type $(, $flags: c_int)?
        ) -> c_int {
            // SAFETY: libc's contract.
            let Some(config) = (unsafe { node(path) }) else {
                // SAFETY: passed on as it came.
                return unsafe { real::$name($($directory,)? path, out $(, $flags)?) };
            };
            match stand_in(config) {
                Ok(path) => {
                    // SAFETY: a path of ours, everything else as it came.
                    let result = unsafe { real::$name($($directory,)? path, out $(, $flags)?) };
                    if result == 0 {
                        // SAFETY: the call has just filled it in.
                        unsafe { (*out).st_mode = libc::S_IFCHR | mode(config) };
                    }
                    result
                }
                Err(errno) => answer(Err(errno)),
            }
        }
    )*};
}

stat_functions! {
    stat(, libc::stat);
    stat64(, libc::stat64);
    lstat(, libc::stat);
    lstat64(, libc::stat64);
    fstatat(directory, libc::stat, flags);
    fstatat64(directory, libc::stat64, flags);
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub(crate) unsafe extern "C" fn statx(
    directory: c_int,
    path: *const c_char,
    flags: c_int,
    mask: c_uint,
    out: *mut libc::statx,
) -> c_int {
    // SAFETY: libc's contract.
    let Some(config) = (unsafe { node(path) }) else {
        // SAFETY: passed on as it came.
        return unsafe { real::statx(directory, path, flags, mask, out) };
    };
    match stand_in(config) {
        Ok(path) => {
            // SAFETY: a path of ours, everything else as it came.
            let result = unsafe { real::statx(directory, path, flags, mask, out) };
            if result == 0 {
                // SAFETY: the call has just filled it in.
                unsafe { (*out).stx_mode = (libc::S_IFCHR | mode(config)) as u16 };
            }
            result
        }
        Err(errno) => answer(Err(errno)),
    }
}

fn access_node(config: &Config, mode: c_int) -> c_int {
    match config.node {
        Node::Absent => answer(Err(Errno::ENOENT)),
        Node::Forbidden if mode != libc::F_OK => answer(Err(Errno::EACCES)),
        _ => 0,
    }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub(crate) unsafe extern "C" fn access(path: *const c_char, mode: c_int) -> c_int {
    // SAFETY: libc's contract.
    match unsafe { node(path) } {
        Some(config) => access_node(config, mode),
        // SAFETY: passed on as it came.
        None => unsafe { real::access(path, mode) },
    }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub(crate) unsafe extern "C" fn faccessat(
    directory: c_int,
    path: *const c_char,
    mode: c_int,
    flags: c_int,
) -> c_int {
    // SAFETY: libc's contract.
    match unsafe { node(path) } {
        Some(config) => access_node(config, mode),
        // SAFETY: passed on as it came.
        None => unsafe { real::faccessat(directory, path, mode, flags) },
    }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub(crate) unsafe extern "C" fn close(fd: c_int) -> c_int {
    // SAFETY: passed on as it came.
    let result = unsafe { real::close(fd) };
    swept(result)
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub(crate) unsafe extern "C" fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int {
    // SAFETY: passed on as it came.
    let result = unsafe { real::close_range(first, last, flags) };
    swept(result)
}

/// After a close: lets go of what it was the last reference to, leaving errno alone.
fn swept(result: c_int) -> c_int {
    if objects::any() && active().is_some() {
        let errno = Errno::last();
        let _inside = Inside::enter();
        objects::sweep();
        set_errno(errno);
    }
    result
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub(crate) unsafe extern "C" fn ioctl(fd: c_int, request: c_ulong, arg: *mut c_void) -> c_int {
    let object = || {
        let config = active()?;
        let _inside = Inside::enter();
        objects::find(fd).map(|object| (config, object))
    };
    let number = request as u32;
    if let Some((config, object)) = abi::is_driver_type(number).then(object).flatten() {
        let _inside = Inside::enter();
        let result = device::ioctl(config, &object, number, arg.expose_provenance() as u64);
        // Before the last reference to a VM goes with `object`: its teardown is the close's, not this call's.
        drop(object);
        return answer(result.map(|value| value as c_int));
    }
    // SAFETY: passed on as it came.
    let result = unsafe { real::ioctl(fd, request, arg) };
    // A pipe and the driver refuse alien requests alike, but for vCPUs of generation A (rule 1.4).
    if result == -1
        && Errno::last() == Errno::ENOTTY
        && objects::any()
        && let Some((_, Object::Vcpu(vcpu))) = object()
    {
        let of_a = vcpu.generation() == Generation::A;
        set_errno(if of_a { Errno::EINVAL } else { Errno::ENOTTY });
    }
    result
}

macro_rules! mmap_functions {
    ($($name:ident;)*) => {$(
        #[cfg_attr(not(test), unsafe(no_mangle))]
        pub(crate) unsafe extern "C" fn $name(
            at: *mut c_void, length: size_t, protection: c_int, flags: c_int, fd: c_int, offset: off_t,
        ) -> *mut c_void {
            if active().is_none() {
                // SAFETY: passed on as it came.
                return unsafe { real::$name(at, length, protection, flags, fd, offset) };
            }
            let _inside = Inside::enter();
            if let Some(Object::Vcpu(vcpu)) = (fd >= 0).then(|| objects::find(fd)).flatten() {
                // SAFETY: libc's contract.
                return unsafe { map_vcpu(&vcpu, at, length, protection, flags, offset) };
            }
            // SAFETY: passed on as it came.
            let mapped = unsafe { real::$name(at, length, protection, flags, fd, offset) };
            note_mapping(mapped, length, protection, flags, fd, offset);
            mapped
        }
    )*};
}

mmap_functions! {
    mmap;
    mmap64;
}

fn note_mapping(
    mapped: *mut c_void,
    length: size_t,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: off_t,
) {
    if mapped == libc::MAP_FAILED {
        return;
    }
    let start = mapped.expose_provenance() as u64;
    if flags & libc::MAP_FIXED != 0 {
        objects::unmapped(start, length as u64);
    }
    if fd >= 0 {
        guest_mem::mapped(fd, start, length as u64, offset.cast_unsigned(), protection);
    }
}

/// A run page: a mapping that raises SIGBUS everywhere but on its first page.
///
/// # Safety
///
/// As for mmap.
unsafe fn map_vcpu(
    vcpu: &std::sync::Arc<device::vcpu::Vcpu>,
    at: *mut c_void,
    length: size_t,
    protection: c_int,
    flags: c_int,
    offset: off_t,
) -> *mut c_void {
    let mut call = Call::new(MMAP);
    if let Err(errno) = strike(MMAP, &mut call) {
        trace::call(call, Err(errno));
        set_errno(errno);
        return libc::MAP_FAILED;
    }
    let fixed = flags & (libc::MAP_FIXED | libc::MAP_FIXED_NOREPLACE);
    let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | fixed;
    // SAFETY: libc's contract; the place is held by an anonymous mapping first.
    let mapped = unsafe { real::mmap(at, length, libc::PROT_NONE, kind, -1, 0) };
    if mapped == libc::MAP_FAILED {
        return mapped;
    }
    let start = mapped.expose_provenance() as u64;
    if fixed != 0 {
        objects::unmapped(start, length as u64);
    }
    let result = lend::forbid(start, length as u64)
        .and_then(|()| objects::map_run_page(vcpu, mapped, protection, offset));
    if let Err(errno) = result {
        // SAFETY: the mapping is the one just made.
        unsafe { real::munmap(mapped, length) };
        set_errno(errno);
        return libc::MAP_FAILED;
    }
    mapped
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub(crate) unsafe extern "C" fn munmap(at: *mut c_void, length: size_t) -> c_int {
    // SAFETY: passed on as it came.
    let result = unsafe { real::munmap(at, length) };
    if result == 0 && active().is_some() {
        let _inside = Inside::enter();
        objects::unmapped(at.expose_provenance() as u64, length as u64);
    }
    result
}

/// Programs that make system calls by number meet the same functions.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub(crate) unsafe extern "C" fn syscall(
    number: c_long,
    a: c_long,
    b: c_long,
    c: c_long,
    d: c_long,
    e: c_long,
    f: c_long,
) -> c_long {
    let pointer = |value: c_long| std::ptr::with_exposed_provenance_mut::<c_void>(value as usize);
    if active().is_some() {
        match number {
            // SAFETY (of all arms): the caller gave the arguments of this system call.
            libc::SYS_openat => {
                // SAFETY: as above.
                return c_long::from(unsafe {
                    openat(a as c_int, pointer(b).cast(), c as c_int, d as mode_t)
                });
            }
            // SAFETY: as above.
            libc::SYS_close => return c_long::from(unsafe { close(a as c_int) }),
            libc::SYS_ioctl => {
                // SAFETY: as above.
                return c_long::from(unsafe { ioctl(a as c_int, b.cast_unsigned(), pointer(c)) });
            }
            libc::SYS_mmap => {
                // SAFETY: as above.
                let mapped = unsafe { mmap(pointer(a), b as size_t, c as c_int, d as c_int, e as c_int, f) };
                return mapped.expose_provenance() as c_long;
            }
            // SAFETY: as above.
            libc::SYS_munmap => return c_long::from(unsafe { munmap(pointer(a), b as size_t) }),
            _ => {}
        }
    }
    // SAFETY: passed on as it came.
    unsafe { real::syscall(number, a, b, c, d, e, f) }
}
