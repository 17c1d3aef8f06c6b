//! The libc functions behind the ones this library puts in front of them.

use std::sync::atomic::{AtomicUsize, Ordering};

use libc::{c_char, c_int, c_long, c_uint, c_void, mode_t, off_t, size_t};

/// Looks a symbol up in the libraries behind this one. Two threads may both look; they find the same.
fn next(cache: &AtomicUsize, name: &std::ffi::CStr) -> usize {
    let known = cache.load(Ordering::Relaxed);
    if known != 0 {
        return known;
    }
    // SAFETY: the name is a C string; RTLD_NEXT is allowed in any object.
    let found = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) } as usize;
    if found == 0 {
        // Nothing can go on without libc: say it and stop.
        eprintln!("gunyah-sim: libc has no {}", name.to_string_lossy());
        std::process::abort();
    }
    cache.store(found, Ordering::Relaxed);
    found
}

macro_rules! real {
    ($($name:ident($($arg:ident: $type:ty),*) -> $ret:ty;)*) => {$(
        /// libc's own, with libc's contract.
        ///
        /// # Safety
        ///
        /// As for the libc function of this name.
        pub(crate) unsafe fn $name($($arg: $type),*) -> $ret {
            static CACHE: AtomicUsize = AtomicUsize::new(0);
            let name = const {
                match std::ffi::CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                    Ok(name) => name,
                    Err(_) => panic!("symbol names have no inner zero"),
                }
            };
            let found = next(&CACHE, name);
            // SAFETY: the symbol is libc's function of this name, whose C prototype this is. Functions that are
            // variadic in C take their integer arguments in the same registers on x86-64 and AArch64 Linux.
            let function: unsafe extern "C" fn($($type),*) -> $ret = unsafe { std::mem::transmute(found) };
            // SAFETY: the caller keeps libc's contract.
            unsafe { function($($arg),*) }
        }
    )*};
}

real! {
    open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int;
    open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int;
    openat(directory: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int;
    openat64(directory: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int;
    close(fd: c_int) -> c_int;
    close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int;
    ioctl(fd: c_int, request: libc::c_ulong, arg: *mut c_void) -> c_int;
    mmap(at: *mut c_void, length: size_t, protection: c_int, flags: c_int, fd: c_int, offset: off_t) -> *mut c_void;
    mmap64(at: *mut c_void, length: size_t, protection: c_int, flags: c_int, fd: c_int, offset: off_t) -> *mut c_void;
    munmap(at: *mut c_void, length: size_t) -> c_int;
    access(path: *const c_char, mode: c_int) -> c_int;
    faccessat(directory: c_int, path: *const c_char, mode: c_int, flags: c_int) -> c_int;
    stat(path: *const c_char, out: *mut libc::stat) -> c_int;
    stat64(path: *const c_char, out: *mut libc::stat64) -> c_int;
    lstat(path: *const c_char, out: *mut libc::stat) -> c_int;
    lstat64(path: *const c_char, out: *mut libc::stat64) -> c_int;
    fstatat(directory: c_int, path: *const c_char, out: *mut libc::stat, flags: c_int) -> c_int;
    fstatat64(directory: c_int, path: *const c_char, out: *mut libc::stat64, flags: c_int) -> c_int;
    statx(directory: c_int, path: *const c_char, flags: c_int, mask: c_uint, out: *mut libc::statx) -> c_int;
    syscall(
        number: c_long, a: c_long, b: c_long, c: c_long, d: c_long, e: c_long, f: c_long
    ) -> c_long;
}
