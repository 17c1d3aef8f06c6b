use super::*;
use crate::hypervisor::gunyah::fixture::{Fixture, MIB, doorbell, line};
use crate::hypervisor::plan::Boot;
use crate::memory::RAM_BASE;

const PAGE: u64 = 4096;

fn driver(generation: Generation) -> Driver {
    Driver {
        generation,
        lend: true,
        firmware: true,
        reclaim: false,
        cma: false,
        auth: false,
        timer_wakeup: false,
    }
}

/// What the rules say of a shared VM on generation A after a change.
fn broken_by(change: impl FnOnce(&mut Fixture, &mut dyn FnMut(fn(&mut VmPlan<'_>)))) -> String {
    let mut fixture = Fixture::shared();
    let mut edits: Vec<fn(&mut VmPlan<'_>)> = Vec::new();
    change(&mut fixture, &mut |edit| edits.push(edit));
    let mut plan = fixture.plan();
    for edit in edits {
        edit(&mut plan);
    }
    check(&plan, &driver(Generation::A), PAGE).unwrap_err().to_string()
}

fn broken_plan(edit: fn(&mut VmPlan<'_>)) -> String {
    broken_by(|_, edits| edits(edit))
}

#[test]
fn accepts_every_kind_where_the_driver_has_it() {
    check(&Fixture::shared().plan(), &driver(Generation::A), PAGE).unwrap();
    for generation in [Generation::A, Generation::B, Generation::C] {
        check(&Fixture::lent().plan(), &driver(generation), PAGE).unwrap();
        check(&Fixture::with_firmware().plan(), &driver(generation), PAGE).unwrap();
    }
}

#[test]
fn refuses_shared_memory_where_no_guest_could_execute_it() {
    for generation in [Generation::B, Generation::C] {
        let error = check(&Fixture::shared().plan(), &driver(generation), PAGE).unwrap_err().to_string();
        assert!(error.contains("add --protected"), "{error}");
    }
}

#[test]
fn refuses_kinds_that_the_driver_lacks() {
    let poor = Driver { lend: false, firmware: false, ..driver(Generation::A) };
    let error = check(&Fixture::lent().plan(), &poor, PAGE).unwrap_err().to_string();
    assert!(error.contains("cannot lend memory") && error.contains("leave --protected out"), "{error}");
    let error = check(&Fixture::with_firmware().plan(), &poor, PAGE).unwrap_err().to_string();
    assert!(error.contains("starts no firmware"), "{error}");
}

#[test]
fn refuses_firmware_without_memory_for_it() {
    let mut fixture = Fixture::lent();
    fixture.firmware = Fixture::with_firmware().firmware;
    let error = check(&fixture.plan(), &driver(Generation::C), PAGE).unwrap_err().to_string();
    assert_eq!(error, "a VM with firmware needs lent memory for it");
}

#[test]
fn refuses_names_that_the_resource_manager_cuts() {
    assert!(broken_plan(|plan| plan.name = "").starts_with("the name of a VM has 1 to 79 bytes"));
    assert!(broken_plan(|plan| plan.name = "a\0b").contains("none of them 0"));
    static LONG: [u8; 80] = [b'a'; 80];
    let name = std::str::from_utf8(&LONG).unwrap();
    let mut fixture = Fixture::shared();
    fixture.lines.clear();
    let plan = VmPlan { name, ..fixture.plan() };
    assert!(check(&plan, &driver(Generation::A), PAGE).is_err());
    let plan = VmPlan { name: &name[1..], ..fixture.plan() };
    check(&plan, &driver(Generation::A), PAGE).unwrap();
}

#[test]
fn refuses_a_vm_without_vcpus() {
    assert_eq!(broken_plan(|plan| plan.vcpus = 0), "a VM needs at least one vCPU");
}

#[test]
fn refuses_two_devices_on_one_line() {
    let error = broken_by(|fixture, _| fixture.lines.push(line(5, "net")));
    assert_eq!(error, "disk and net are both on SPI 5: under Gunyah each line belongs to one device");
}

#[test]
fn refuses_lines_that_are_not_spis() {
    assert_eq!(
        broken_by(|fixture, _| fixture.lines.push(line(988, "net"))),
        "SPI 988 of net is not below 988"
    );
}

#[test]
fn refuses_doorbells_whose_writes_nobody_sees() {
    let error = broken_by(|fixture, _| fixture.doorbells.push(doorbell(0x4000_0000, Some((0, 4)), "net")));
    assert!(error.contains("not below 1 GiB"), "{error}");
}

#[test]
fn refuses_doorbells_that_clash() {
    for clashing in [doorbell(0x1050, Some((1, 4)), "net"), doorbell(0x1050, None, "net")] {
        let error = broken_by(|fixture, _| fixture.doorbells.push(clashing));
        assert_eq!(error, "disk and net have the same doorbell at 0x1050");
    }
}

#[test]
fn refuses_doorbells_that_can_never_match() {
    for datamatch in [(0x1_0000, 2), (1, 3), (1, 0)] {
        let error = broken_by(|fixture, _| fixture.doorbells.push(doorbell(0x2000, Some(datamatch), "net")));
        assert!(error.starts_with("the doorbell of net at 0x2000 matches"), "{error}");
    }
}

#[test]
fn refuses_device_trees_where_the_driver_finds_none() {
    let at = |dtb_address, dtb_size| {
        let fixture = Fixture::shared();
        let plan = VmPlan { boot: Boot { entry: RAM_BASE, dtb_address, dtb_size }, ..fixture.plan() };
        check(&plan, &driver(Generation::A), PAGE).unwrap_err().to_string()
    };
    assert!(at(RAM_BASE + 0x100, 0x1_0000).contains("does not begin and end at pages"));
    assert!(at(RAM_BASE + MIB, 0x1_0100).contains("does not begin and end at pages"));
    assert!(at(RAM_BASE + MIB, 0x4000).contains("may need 0x8000"));
    assert!(at(RAM_BASE - MIB, 0x1_0000).contains("is not in the region of RAM"));
    assert!(at(RAM_BASE + 16 * MIB - 0x8000, 0x1_0000).contains("is not in the region of RAM"));
    assert!(at(u64::MAX - 0xfff, 0x1_0000).contains("is not in the region of RAM"));
}

#[test]
fn refuses_a_start_anywhere_but_at_the_first_byte() {
    let error = broken_plan(|plan| plan.boot.entry += 0x8_0000);
    assert_eq!(error, "the guest starts at 0x80080000 and not at the first byte of RAM, 0x80000000");
    let error = broken_plan(|plan| plan.boot.entry = 0x4000_0000);
    assert!(error.contains("where it has no memory"), "{error}");
}

#[test]
fn refuses_interrupt_controllers_out_of_the_trap_window() {
    assert!(broken_plan(|plan| plan.gic.distributor = 0x4000_0000).contains("distributor at 0x40000000"));
    assert!(
        broken_plan(|plan| plan.gic.redistributors = 0x3f00_8000).contains("redistributors at 0x3f008000")
    );
    assert!(broken_plan(|plan| plan.gic.redistributors = 0x3ffe_0000).contains("overlap"));
}

#[test]
fn lists_everything_that_is_wrong() {
    let error = broken_by(|fixture, edits| {
        fixture.lines.push(line(5, "net"));
        edits(|plan| plan.vcpus = 0);
    });
    assert_eq!(error.lines().count(), 3, "{error}");
}

#[test]
fn doubts_more_vcpus_than_cores() {
    let fixture = Fixture::shared();
    let plan = VmPlan { vcpus: 8, ..fixture.plan() };
    assert!(doubts(&plan, Some(8)).is_empty());
    assert!(doubts(&plan, None).is_empty());
    let doubts = doubts(&plan, Some(4));
    assert!(doubts[0].starts_with("this VM has 8 vCPUs and the host 4 cores"), "{doubts:?}");
}

#[test]
fn counts_all_memory_that_is_pinned() {
    let fixture = Fixture::with_firmware();
    assert_eq!(locked_bytes(&fixture.plan(), Generation::A), 20 * MIB);
    assert_eq!(locked_bytes(&fixture.plan(), Generation::C), 20 * MIB);
    assert_eq!(locked_bytes(&fixture.plan(), Generation::B), 0);
}
