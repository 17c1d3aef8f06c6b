//! Memory, functions and START: what is refused, with which errno, and what START does to memory.

mod common;

use std::os::fd::AsRawFd;

use common::Sim;
use common::client::{
    ADD_FUNCTION, Machine, Pages, RAM, RAM_SIZE, REMOVE_FUNCTION, TREE, TREE_SIZE, eventfd, open_node,
};
use common::tree::Tree;

#[test]
fn regions_are_refused_as_their_generation_refuses_them() {
    for kind in ["A", "C"] {
        Sim::new(kind).check(test_name!(), || {
            let machine = Machine::empty();
            let page = Pages::anonymous(4096);
            assert_eq!(machine.share_pages(1, 8, RAM, &page), Err(libc::EINVAL));
            assert_eq!(machine.share_pages(1, 7, RAM + 1, &page), Err(libc::EINVAL));
            assert_eq!(machine.share_pages(1, 7, 0xffff_ffff_ffff_f000, &page), Err(libc::EOVERFLOW));
            assert_eq!(machine.share_pages(1, 7, RAM, &page), Ok(0));
            assert_eq!(machine.share_pages(2, 7, RAM, &page), Err(libc::EEXIST));
            let again = machine.share_pages(1, 7, RAM + 4096, &page);
            assert_eq!(again, if common::kind() == "A" { Err(libc::EEXIST) } else { Ok(0) });
        });
    }
}

#[test]
fn generation_a_pins_within_the_limit_of_locked_memory() {
    let sim = Sim::new("A").var("GUNYAH_SIM_MEMLOCK", "on");
    sim.check(test_name!(), || {
        let limit = libc::rlimit { rlim_cur: RAM_SIZE, rlim_max: RAM_SIZE };
        // SAFETY: the structure is valid.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) }, 0);
        let machine = Machine::empty();
        assert_eq!(machine.share(0, RAM), Ok(0));
        let page = Pages::anonymous(4096);
        assert_eq!(machine.share_pages(1, 7, RAM + RAM_SIZE, &page), Err(libc::ENOMEM));
    });
}

#[test]
fn memory_is_for_the_process_that_made_the_vm() {
    Sim::new("C").check(test_name!(), || {
        let machine = Machine::empty();
        // SAFETY: the child only makes a system call and leaves.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let refused = machine.share(0, RAM) == Err(libc::EPERM);
            // SAFETY: leaves without running the parent's exit handlers.
            unsafe { libc::_exit(i32::from(!refused)) };
        }
        let mut status = 0;
        // SAFETY: the pointer is valid.
        unsafe { libc::waitpid(child, &raw mut status, 0) };
        assert_eq!(status, 0);
    });
}

#[test]
fn functions_are_refused_as_the_driver_refuses_them() {
    Sim::new("C").check(test_name!(), || {
        let mut machine = Machine::empty();
        let event = eventfd();
        let file = std::fs::File::open("/dev/null").unwrap();
        machine.add_vcpu(0).unwrap();
        assert_eq!(machine.add_vcpu(0), Err(libc::EEXIST));
        assert_eq!(machine.function(ADD_FUNCTION, 9, 4, &[0]), Err(libc::ENOENT));
        assert_eq!(machine.function(ADD_FUNCTION, 1, 8, &[1]), Err(libc::EINVAL));
        assert_eq!(machine.function(ADD_FUNCTION, 1, 300, &[0; 40]), Err(libc::EINVAL));
        assert_eq!(machine.irqfd(ADD_FUNCTION, 999, 1, 0), Err(libc::EBADF));
        assert_eq!(machine.irqfd(ADD_FUNCTION, file.as_raw_fd(), 1, 0), Err(libc::EINVAL));
        assert_eq!(machine.irqfd(ADD_FUNCTION, event.as_raw_fd(), 1, 2), Err(libc::EINVAL));
        assert_eq!(machine.irqfd(ADD_FUNCTION, event.as_raw_fd(), 1, 1), Ok(0));
        assert_eq!(machine.irqfd(ADD_FUNCTION, event.as_raw_fd(), 1, 0), Err(libc::EEXIST));
        assert_eq!(machine.irqfd(REMOVE_FUNCTION, -1, 1, 0), Ok(0));
        assert_eq!(machine.irqfd(REMOVE_FUNCTION, -1, 1, 0), Err(libc::ENOENT));
        assert_eq!(machine.ioeventfd(ADD_FUNCTION, event.as_raw_fd(), 16, 0, Some(1)), Err(libc::EINVAL));
        assert_eq!(machine.ioeventfd(ADD_FUNCTION, event.as_raw_fd(), 16, 4, Some(1)), Ok(0));
        assert_eq!(machine.ioeventfd(ADD_FUNCTION, event.as_raw_fd(), 16, 4, None), Err(libc::EEXIST));
        assert_eq!(machine.ioeventfd(REMOVE_FUNCTION, -1, 16, 0, None), Err(libc::ENOENT));
        assert_eq!(machine.ioeventfd(REMOVE_FUNCTION, -1, 16, 4, Some(1)), Ok(0));
    });
}

#[test]
fn a_second_start_succeeds_and_a_failed_one_poisons_the_vm() {
    Sim::new("A").script(r#"["hang"]"#).check(test_name!(), || {
        let good = Machine::started();
        assert_eq!(good.start(), Ok(0));
        let bad = Machine::new("A", &Tree { hypervisor: true, ..Tree::default() });
        assert_eq!(bad.start(), Err(libc::ENODEV));
        bad.ram.store((TREE - RAM) as usize, &Tree::default().build());
        assert_eq!(bad.start(), Err(libc::ENODEV));
    });
}

#[test]
fn a_bad_tree_range_has_one_errno_per_generation() {
    for (kind, outside, odd) in [("A", libc::EINVAL, libc::EINVAL), ("C", libc::ENODEV, libc::EINVAL)] {
        Sim::new(kind).script("[]").check(test_name!(), || {
            let outside_and_odd = |kind: &str| {
                [("A", libc::EINVAL), ("C", libc::ENODEV)]
                    .iter()
                    .find(|case| case.0 == kind)
                    .map(|case| (case.1, libc::EINVAL))
                    .unwrap()
            };
            let (outside, odd) = outside_and_odd(&common::kind());
            let machine = Machine::new(&common::kind(), &Tree::default());
            machine.set_tree(0x7000_0000, TREE_SIZE).unwrap();
            assert_eq!(machine.start(), Err(outside));
            let machine = Machine::new(&common::kind(), &Tree::default());
            machine.set_tree(TREE, TREE_SIZE + 8).unwrap();
            assert_eq!(machine.start(), Err(odd));
        });
        let _ = (outside, odd);
    }
}

#[test]
fn the_resource_managers_reason_is_in_the_log() {
    let sim = Sim::new("A").var("GUNYAH_SIM_CORES", "4").script("[]");
    let outcome = sim.check(test_name!(), || {
        let machine = Machine::new("A", &Tree { vcpus: 8, ..Tree::default() });
        assert_eq!(machine.start(), Err(libc::ENODEV));
    });
    assert!(outcome.logged("RM rejected message 5600000b. Error: 2: invalid vcpu cnt(8) vs max cores(4)"));
}

#[test]
fn a_shared_image_is_refused_on_a_phone() {
    let sim = Sim::new("A").var("GUNYAH_SIM_RM", "production").script("[]");
    sim.check(test_name!(), || {
        assert_eq!(Machine::new("A", &Tree::default()).start(), Err(libc::ENODEV));
    });
}

#[test]
fn the_open_build_runs_no_later_driver() {
    let sim = Sim::new("C").var("GUNYAH_SIM_RM", "debug").script("[]");
    let outcome = sim.check(test_name!(), || {
        assert_eq!(Machine::new("C", &Tree::default()).start(), Err(libc::EOPNOTSUPP));
    });
    assert!(outcome.logged("RM rejected message 56000031"));
}

#[test]
fn vcpus_that_differ_from_the_tree_end_the_program() {
    let outcome = Sim::new("A").script("[]").run(test_name!(), || {
        let mut machine = Machine::new("A", &Tree::default());
        machine.add_vcpu(1).unwrap();
        let _ = machine.start();
    });
    assert!(!outcome.status.success());
    assert!(outcome.output.contains("a real host kernel oopses here"), "{}", outcome.output);
}

#[test]
fn the_tree_is_patched_in_guest_memory() {
    Sim::new("A").script(r#"["hang"]"#).check(test_name!(), || {
        let machine = Machine::started();
        let tree: [u8; TREE_SIZE as usize] = machine.ram.load((TREE - RAM) as usize);
        for part in ["kaslr-seed", "hypervisor", "bell-2@", "reserved-memory", "vsoc"] {
            assert!(tree.windows(part.len()).any(|window| window == part.as_bytes()), "{part}");
        }
    });
}

#[test]
fn lent_memory_is_out_of_reach_while_the_vm_lives() {
    let steps = r#"[{"load": {"addr": "0x80100000", "bytes": "01020304"}}, "power-off"]"#;
    for kind in ["A+", "C", "B"] {
        Sim::new(kind).script(steps).check(test_name!(), || {
            let machine = Machine::new(&common::kind(), &Tree::default());
            machine.ram.store(0x10_0000, &[1, 2, 3, 4]);
            machine.start().unwrap();
            assert!(!machine.ram.is_readable(0));
            assert!(!machine.ram.is_readable((TREE - RAM) as usize));
            machine.vcpus[0].run().unwrap();
            assert_eq!(machine.vcpus[0].status(), (2, 1));
        });
    }
}

#[test]
fn a_touch_of_lent_memory_is_a_bus_error() {
    let outcome = Sim::new("C").script("[]").run(test_name!(), || {
        let machine = Machine::started();
        let _: [u8; 1] = machine.ram.load(0);
    });
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(outcome.status.signal(), Some(libc::SIGBUS), "{}", outcome.output);
}

#[test]
fn a_shared_window_stays_in_reach_beside_lent_memory() {
    let window = RAM + RAM_SIZE;
    let steps = format!(r#"[{{"store": {{"addr": "{window:#x}", "bytes": "5a"}}}}, "power-off"]"#);
    Sim::new("C").script(&steps).check(test_name!(), || {
        let window = Pages::anonymous(0x1_0000);
        let tree = Tree { window: Some((1, RAM + RAM_SIZE, 0x1_0000)), ..Tree::default() };
        let machine = Machine::new("C", &tree);
        machine.share_pages(1, 3, RAM + RAM_SIZE, &window).unwrap();
        machine.start().unwrap();
        machine.vcpus[0].run().unwrap();
        assert_eq!(machine.vcpus[0].status(), (2, 1));
        assert_eq!(window.load(0), [0x5a]);
    });
}

#[test]
fn a_program_that_makes_system_calls_by_number_meets_the_driver_too() {
    Sim::new("A").check(test_name!(), || {
        // SAFETY: a C string and plain numbers.
        let fd =
            unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, c"/dev/gunyah".as_ptr(), libc::O_RDWR) };
        assert!(fd >= 0);
        // SAFETY: plain numbers.
        let vm = unsafe { libc::syscall(libc::SYS_ioctl, fd, common::client::CREATE_VM, 0) };
        assert!(vm >= 0);
        drop(open_node().unwrap());
    });
}
