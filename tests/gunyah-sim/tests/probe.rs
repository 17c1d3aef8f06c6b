//! What a program finds before it makes a VM: the node, its generation, its requests.

mod common;

use std::os::fd::AsRawFd;
use std::path::Path;

use common::Sim;
use common::client::{
    Answer, CREATE_GUEST_MEM, CREATE_VM, LEND_USER_MEM, MAP_MEM, Machine, SET_BOOT_CONTEXT,
    SET_USER_MEM_REGION, VCPU_MMAP_SIZE, ioctl, open_node,
};
use common::tree::Tree;

#[test]
fn there_is_no_node_without_a_driver() {
    Sim::new("none").check(test_name!(), || {
        assert!(!Path::new("/dev/gunyah").exists());
        assert_eq!(open_node().unwrap_err().raw_os_error(), Some(libc::ENOENT));
    });
}

#[test]
fn a_forbidden_node_is_there_but_does_not_open() {
    Sim::new("eacces").check(test_name!(), || {
        assert!(Path::new("/dev/gunyah").exists());
        assert_eq!(open_node().unwrap_err().raw_os_error(), Some(libc::EACCES));
    });
}

#[test]
fn the_node_looks_like_a_character_device() {
    use std::os::unix::fs::FileTypeExt;
    Sim::new("A").check(test_name!(), || {
        assert!(std::fs::metadata("/dev/gunyah").unwrap().file_type().is_char_device());
        assert!(!std::fs::metadata("/dev").unwrap().file_type().is_char_device());
    });
}

#[test]
fn the_vendors_driver_refuses_create_vm() {
    Sim::new("V0").check(test_name!(), || {
        let node = open_node().unwrap();
        assert_eq!(ioctl(node.as_raw_fd(), CREATE_VM, 0), Err(libc::EINVAL));
    });
}

/// Errno of a null argument: EFAULT for a request that is known, ENOTTY for one that is not.
fn probe(machine: &Machine, request: u32) -> Answer {
    ioctl(machine.vm.as_raw_fd(), request, 0)
}

#[test]
fn null_arguments_tell_the_generations_apart() {
    for kind in ["A", "A+", "B", "C"] {
        Sim::new(kind).check(test_name!(), || {
            let known = |known: bool| Err(if known { libc::EFAULT } else { libc::ENOTTY });
            let kind = common::kind();
            let machine = Machine::empty();
            assert_eq!(probe(&machine, SET_BOOT_CONTEXT), known(matches!(kind.as_str(), "B" | "C")));
            assert_eq!(probe(&machine, SET_USER_MEM_REGION), known(kind != "B"));
            assert_eq!(probe(&machine, LEND_USER_MEM), known(matches!(kind.as_str(), "A+" | "C")));
            assert_eq!(probe(&machine, MAP_MEM), known(kind == "B"));
            assert_eq!(ioctl(machine.node.as_raw_fd(), CREATE_GUEST_MEM, 0), known(kind == "B"));
        });
    }
}

#[test]
fn create_vm_wants_a_zero() {
    Sim::new("A").check(test_name!(), || {
        let node = open_node().unwrap();
        assert_eq!(ioctl(node.as_raw_fd(), CREATE_VM, 1), Err(libc::EINVAL));
    });
}

#[test]
fn descriptors_close_on_exec_and_can_be_duplicated() {
    Sim::new("A").check(test_name!(), || {
        let machine = Machine::empty();
        // SAFETY: fcntl takes no pointers here.
        let flags = unsafe { libc::fcntl(machine.vm.as_raw_fd(), libc::F_GETFD) };
        assert_eq!(flags, libc::FD_CLOEXEC);
        let copy = machine.vm.try_clone().unwrap();
        assert_eq!(ioctl(copy.as_raw_fd(), SET_USER_MEM_REGION, 0), Err(libc::EFAULT));
    });
}

#[test]
fn unknown_requests_of_a_vcpu_differ_by_generation() {
    for kind in ["A", "C"] {
        Sim::new(kind).script(r#"["hang"]"#).check(test_name!(), || {
            let kind = common::kind();
            let machine = Machine::new(&kind, &Tree::default());
            let wanted = if kind == "A" { libc::EINVAL } else { libc::ENOTTY };
            let vcpu = machine.vcpus[0].fd.as_raw_fd();
            for unknown in [0x4707, 0x5401] {
                assert_eq!(ioctl(vcpu, unknown, 0), Err(wanted), "{unknown:#x}");
            }
            assert_eq!(ioctl(machine.vm.as_raw_fd(), 0x5401, 0), Err(libc::ENOTTY));
            assert_eq!(ioctl(vcpu, VCPU_MMAP_SIZE, 0), Ok(4096));
        });
    }
}
