use std::path::PathBuf;

use super::findings::Findings;
use super::report::Report;
use super::to_json;
use crate::host::memlock::LockLimit;
use crate::host::pieces::{FreePieces, TransparentHugePages};
use crate::host::security::SeLinux;
use crate::hypervisor::gunyah::probe::{Driver, Failure, Generation, Probe};

const MIB: u64 = 1 << 20;

/// A rooted phone, root's shell, with nothing in the way.
fn phone(gunyah: Probe) -> Findings {
    Findings {
        node: PathBuf::from("/dev/gunyah"),
        gunyah,
        kvm: Err("/dev/kvm does not exist".to_owned()),
        kernel: "6.6.30-android15".to_owned(),
        machine: "aarch64".to_owned(),
        cores: Some(8),
        selinux: SeLinux::Permissive,
        memlock: Some(LockLimit { soft: None, hard: None, locked: 0, exempt: true }),
        pieces: Some(FreePieces { free: 4096 * MIB, huge: 3000 * MIB, largest: 4 * MIB }),
        huge_pages: Some(TransparentHugePages::Madvise),
        page_size: 4096,
    }
}

fn driver(generation: Generation) -> Driver {
    let android = generation == Generation::C;
    Driver {
        generation,
        lend: true,
        firmware: android,
        reclaim: android,
        cma: android,
        auth: android,
        timer_wakeup: false,
    }
}

/// Compares the text with a file. `GVMM_WRITE_SNAPSHOTS=1` writes it instead.
fn assert_snapshot(name: &str, findings: &Findings) {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/doctor/snapshots").join(name);
    let text = Report::from(findings).to_string();
    if std::env::var_os("GVMM_WRITE_SNAPSHOTS").is_some() {
        std::fs::write(&file, &text).unwrap();
    }
    let expected = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(text == expected, "{} has changed; it is now:\n{text}", file.display());
}

#[test]
fn reports_generation_a() {
    let plain = Driver { lend: false, ..driver(Generation::A) };
    assert_snapshot("generation_a.txt", &phone(Probe::Usable(plain)));
}

#[test]
fn reports_generation_b() {
    assert_snapshot("generation_b.txt", &phone(Probe::Usable(driver(Generation::B))));
}

#[test]
fn reports_generation_c_on_a_phone_with_its_limits() {
    let findings = Findings {
        selinux: SeLinux::Enforcing,
        memlock: Some(LockLimit { soft: Some(65536), hard: Some(65536), locked: 0, exempt: false }),
        pieces: Some(FreePieces { free: 2048 * MIB, huge: 60 * MIB, largest: 4 * MIB }),
        huge_pages: Some(TransparentHugePages::Never),
        ..phone(Probe::Usable(driver(Generation::C)))
    };
    assert_snapshot("generation_c.txt", &findings);
}

#[test]
fn reports_the_vendor_driver() {
    assert_snapshot("vendor.txt", &phone(Probe::Vendor));
}

#[test]
fn reports_a_machine_without_gunyah() {
    let findings = Findings {
        kvm: Ok(()),
        selinux: SeLinux::Off,
        kernel: "6.1.0-arm64".to_owned(),
        pieces: None,
        ..phone(Probe::NoNode)
    };
    assert_snapshot("no_device.txt", &findings);
}

#[test]
fn reports_a_user_who_may_not() {
    let findings = Findings {
        selinux: SeLinux::Enforcing,
        memlock: Some(LockLimit { soft: Some(65536), hard: None, locked: 0, exempt: false }),
        ..phone(Probe::NotPermitted(Failure(libc::EACCES)))
    };
    assert_snapshot("no_permission.txt", &findings);
}

#[test]
fn says_that_nothing_runs_where_nothing_does() {
    let can_run = |probe| Report::from(&phone(probe)).can_run;
    assert!(can_run(Probe::Usable(driver(Generation::A))));
    for probe in
        [Probe::NoNode, Probe::Vendor, Probe::Unrecognised, Probe::NotPermitted(Failure(libc::EPERM))]
    {
        assert!(!can_run(probe));
    }
    assert!(Report::from(&Findings { kvm: Ok(()), ..phone(Probe::NoNode) }).can_run);
}

#[test]
fn lends_nothing_where_the_driver_cannot() {
    // Such a driver would run no VM at all: shared memory cannot be executed, and none can be lent.
    let findings = phone(Probe::Usable(Driver { lend: false, ..driver(Generation::C) }));
    assert!(!Report::from(&findings).can_run);
}

#[test]
fn writes_json_that_a_program_can_rely_on() {
    let json = to_json(&Report::from(&phone(Probe::Usable(driver(Generation::C)))));
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(value["can_run"], true);
    assert_eq!(value["gunyah"]["state"], "usable");
    assert_eq!(value["gunyah"]["driver"]["generation"], "C");
    assert_eq!(value["gunyah"]["driver"]["firmware"], true);
    assert_eq!(value["gunyah"]["kinds"][0]["runs"], "no");
    assert_eq!(value["gunyah"]["kinds"][1]["options"], "--protected");
    assert_eq!(value["kvm"]["usable"], false);
    assert_eq!(value["host"]["selinux"], "permissive");
    assert_eq!(value["host"]["memlock"]["exempt"], true);
    assert_eq!(value["host"]["largest_page_list_guest"], 2048 * MIB);
}

#[test]
fn looks_at_this_machine_without_a_failure() {
    let findings = Findings::look();
    assert!(findings.page_size >= 4096);
    assert!(!findings.kernel.is_empty());
}
