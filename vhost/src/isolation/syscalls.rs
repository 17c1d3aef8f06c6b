//! The system calls that a device in a process of its own may make.

use seccompiler::{BpfProgram, TargetArch, compile_from_json};
use serde_json::{Value, json};

/// What every device's process makes: the queue worker, memory, files that are open, eventfds, threads, vhost-user.
const COMMON: &[&str] = &[
    "brk",
    "clock_gettime",
    "clock_nanosleep",
    "clone3",
    "close",
    "dup",
    "epoll_create1",
    "epoll_ctl",
    "epoll_pwait",
    "eventfd2",
    "exit",
    "exit_group",
    "fadvise64",
    "fallocate",
    "fcntl",
    "fdatasync",
    "flock",
    "fstat",
    "fstatfs",
    "fsync",
    "ftruncate",
    "futex",
    "getdents64",
    "getpid",
    "getrandom",
    "gettid",
    "gettimeofday",
    "lseek",
    "madvise",
    "memfd_create",
    "mmap",
    "mprotect",
    "mremap",
    "munmap",
    "nanosleep",
    "newfstatat",
    "openat",
    "pipe2",
    "ppoll",
    "pread64",
    "preadv",
    "preadv2",
    "pwrite64",
    "pwritev",
    "pwritev2",
    "read",
    "readlinkat",
    "readv",
    "recvmsg",
    "restart_syscall",
    "rseq",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "sched_getaffinity",
    "sched_yield",
    "sendmsg",
    "sendto",
    "set_robust_list",
    "sigaltstack",
    "statx",
    "timerfd_create",
    "timerfd_gettime",
    "timerfd_settime",
    "uname",
    "write",
    "writev",
    // The sandbox itself goes on after the filter is in place.
    "landlock_add_rule",
    "landlock_create_ruleset",
    "landlock_restrict_self",
];

/// What older architectures have besides for the same.
#[cfg(target_arch = "x86_64")]
const OLDER: &[&str] = &["arch_prctl", "dup2", "epoll_wait", "lstat", "open", "poll", "readlink", "stat"];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[&str] = &[];

/// What no descriptor can ask for: other programs, other processes, the kernel's own set-up.
const NEVER: &[&str] = &[
    "bpf",
    "chroot",
    "clone",
    "delete_module",
    "execve",
    "execveat",
    "finit_module",
    "fork",
    "init_module",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "kill",
    "mount",
    "move_mount",
    "open_by_handle_at",
    "open_tree",
    "perf_event_open",
    "pidfd_getfd",
    "pidfd_open",
    "pidfd_send_signal",
    "pivot_root",
    "process_madvise",
    "process_vm_readv",
    "process_vm_writev",
    "ptrace",
    "reboot",
    "rt_sigqueueinfo",
    "setns",
    "swapon",
    "tkill",
    "umount2",
    "unshare",
    "userfaultfd",
    "vfork",
];

/// Whether a descriptor asks for network sockets.
pub(super) fn wants_sockets(declared: &[String]) -> bool {
    declared.iter().any(|name| name == "socket")
}

/// The filters for a plugin that declares these calls besides the common ones; `accepts` says that front ends are
/// waited for.
pub(super) fn filters(declared: &[String], accepts: bool) -> Result<[BpfProgram; 2], String> {
    if let Some(name) = declared.iter().find(|name| NEVER.contains(&name.as_str())) {
        return Err(format!("its descriptor asks for the system call {name}, which no sandbox gives"));
    }
    let accept: &[&str] = if accepts { &["accept4"] } else { &[] };
    let declared = declared.iter().map(String::as_str).filter(|name| is_known(name));
    let mut names: Vec<&str> = COMMON.iter().chain(OLDER).chain(accept).copied().chain(declared).collect();
    names.sort_unstable();
    names.dedup();
    let mut calls: Vec<Value> = names.into_iter().map(|name| json!({ "syscall": name })).collect();
    let if_argument = |name: &str, index: u8, op: Value, value: u64| json!({ "syscall": name, "args": [{ "index": index, "type": "dword", "op": op, "val": value }] });
    // Threads, and no processes.
    let thread = u64::from(libc::CLONE_THREAD.cast_unsigned());
    calls.push(if_argument("clone", 0, json!({ "masked_eq": thread }), thread));
    // Typing into a terminal is a way out.
    calls.retain(|call| call["syscall"] != "ioctl");
    calls.push(if_argument("ioctl", 1, json!("ne"), libc::TIOCSTI));
    for harmless in [libc::PR_SET_NAME, libc::PR_SET_NO_NEW_PRIVS] {
        calls.push(if_argument("prctl", 0, json!("eq"), u64::from(harmless.cast_unsigned())));
    }
    // abort() signals its own thread.
    calls.push(if_argument("tgkill", 0, json!("eq"), u64::from(std::process::id())));
    let allowed = compile(&calls, json!({ "errno": libc::EPERM }), json!("allow"))?;
    // The arguments of clone3 are in memory, where no filter sees them: libc falls back to clone.
    let no_clone3 =
        compile(&[json!({ "syscall": "clone3" })], json!("allow"), json!({ "errno": libc::ENOSYS }))?;
    Ok([no_clone3, allowed])
}

/// Whether the architecture has a call of this name; plugins declare the names of all.
fn is_known(name: &str) -> bool {
    compile(&[json!({ "syscall": name })], json!("trap"), json!("allow")).is_ok()
}

fn compile(calls: &[Value], otherwise: Value, matching: Value) -> Result<BpfProgram, String> {
    let failed = |e: &dyn std::fmt::Display| format!("the filter for system calls: {e}");
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|e| failed(&e))?;
    let filter = json!({ "mismatch_action": otherwise, "match_action": matching, "filter": calls });
    let text = json!({ "device": filter }).to_string();
    let mut compiled = compile_from_json(text.as_bytes(), arch).map_err(|e| failed(&e))?;
    compiled.remove("device").ok_or_else(|| failed(&"it is empty"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_common_call_exists_here() {
        for name in COMMON.iter().chain(OLDER) {
            assert!(is_known(name), "{name}");
        }
        assert!(filters(&[], true).is_ok());
    }

    #[test]
    fn calls_of_another_architecture_are_left_out() {
        assert!(!is_known("no_such_call"));
        assert!(filters(&["no_such_call".to_owned()], false).is_ok());
    }

    #[test]
    fn a_descriptor_cannot_ask_for_a_way_out() {
        for name in NEVER {
            let error = filters(&[(*name).to_owned()], false).unwrap_err();
            assert_eq!(
                error,
                format!("its descriptor asks for the system call {name}, which no sandbox gives")
            );
        }
    }
}
