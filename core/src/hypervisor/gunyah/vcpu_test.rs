use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use super::*;
use crate::hypervisor::kick::RunPage;

/// A vCPU whose run page is a file that the test writes. It cannot run, but it can tell exits.
struct Bench {
    vcpu: GunyahVcpu,
    page: File,
}

impl Bench {
    fn new(generation: Generation) -> Self {
        let page = tempfile::tempfile().unwrap();
        page.set_len(4096).unwrap();
        let run_page = RunPage::map(&page, 4096, uapi::run_page::IMMEDIATE_EXIT).unwrap();
        let fd = VcpuFd::from(OwnedFd::from(page.try_clone().unwrap()));
        Self { vcpu: GunyahVcpu::new(3, generation, fd, RunPageView::new(run_page).unwrap()), page }
    }

    fn put(&self, offset: usize, bytes: &[u8]) {
        self.page.write_all_at(bytes, offset as u64).unwrap();
    }

    fn mmio(&self, address: u64, length: u32, written: Option<[u8; 8]>) {
        self.put(uapi::run_page::EXIT_REASON, &uapi::EXIT_MMIO.to_le_bytes());
        self.put(uapi::run_page::MMIO_ADDRESS, &address.to_le_bytes());
        self.put(uapi::run_page::MMIO_DATA, &written.unwrap_or([0xaa; 8]));
        self.put(uapi::run_page::MMIO_LENGTH, &length.to_le_bytes());
        self.put(uapi::run_page::MMIO_IS_WRITE, &[u8::from(written.is_some())]);
    }

    fn status(&self, status: u32, exit_type: u16, reason: &[u8]) {
        self.put(uapi::run_page::EXIT_REASON, &uapi::EXIT_STATUS.to_le_bytes());
        self.put(uapi::run_page::STATUS, &status.to_le_bytes());
        self.put(uapi::run_page::STATUS_EXIT_TYPE, &exit_type.to_le_bytes());
        self.put(uapi::run_page::STATUS_REASON_SIZE, &u32::try_from(reason.len()).unwrap().to_le_bytes());
        self.put(uapi::run_page::STATUS_REASON, &[0xff; 8]);
        self.put(uapi::run_page::STATUS_REASON, &reason[..reason.len().min(8)]);
    }

    fn fault(&self, address: u64, attempt: i32) {
        self.put(uapi::run_page::EXIT_REASON, &uapi::EXIT_PAGE_FAULT.to_le_bytes());
        self.put(uapi::run_page::FAULT_ADDRESS, &address.to_le_bytes());
        self.put(uapi::run_page::FAULT_ATTEMPT, &attempt.to_le_bytes());
    }

    fn end(&mut self) -> End {
        match self.vcpu.exit().unwrap() {
            Exit::Ended(end) => end,
            other => panic!("{other:?}"),
        }
    }

    fn crash(&mut self) -> String {
        match self.end() {
            End::Crash(text) => text,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn tells_what_the_guest_wrote() {
    let mut bench = Bench::new(Generation::A);
    bench.mmio(0x3f8, 4, Some([1, 2, 3, 4, 5, 6, 7, 8]));
    match bench.vcpu.exit().unwrap() {
        Exit::MmioWrite { address, data } => assert_eq!((address, data), (0x3f8, &[1, 2, 3, 4][..])),
        other => panic!("{other:?}"),
    };
    assert!(!bench.vcpu.read_answered);
}

#[test]
fn gives_reads_room_of_their_size_and_no_stale_bytes() {
    let mut bench = Bench::new(Generation::C);
    for size in [1, 2, 4, 8u32] {
        bench.mmio(0x1000, size, None);
        match bench.vcpu.exit().unwrap() {
            Exit::MmioRead { address, data } => {
                assert_eq!(address, 0x1000);
                assert_eq!(data, &vec![0; size as usize][..]);
                data.fill(0x55);
            }
            other => panic!("{other:?}"),
        };
        assert!(bench.vcpu.read_answered);
    }
}

#[test]
fn refuses_accesses_that_no_instruction_makes() {
    for length in [0, 3, 9, u32::MAX] {
        let mut bench = Bench::new(Generation::A);
        bench.mmio(0x1000, length, None);
        let error = bench.vcpu.exit().unwrap_err().to_string();
        assert_eq!(
            error,
            format!(
                "GH_VCPU_RUN of vCPU 3 came back with an access of {length} bytes at 0x1000, which no driver of \
                 generation A is known to do"
            )
        );
    }
}

#[test]
fn maps_every_kind_of_end() {
    let mut bench = Bench::new(Generation::A);
    for (exit_type, end) in [(0, End::PowerOff), (1, End::PowerOff), (2, End::Reset), (3, End::Reset)] {
        bench.status(2, exit_type, &[0; 4]);
        assert_eq!(bench.end(), end, "type {exit_type}");
    }
    for (exit_type, word) in
        [(4, "watchdog"), (5, "hypervisor met"), (6, "abort"), (7, "stopped"), (99, "type 99")]
    {
        bench.status(2, exit_type, &[]);
        let text = bench.crash();
        assert!(text.contains(word), "{text}");
    }
    for (status, word) in [(1, "load"), (3, "crashed"), (77, "does not know, 77")] {
        bench.status(status, 0, &[]);
        let text = bench.crash();
        assert!(text.contains(word), "{text}");
    }
}

#[test]
fn tells_the_valid_bytes_of_the_reason_alone() {
    let mut bench = Bench::new(Generation::A);
    bench.status(2, 5, &[0x34, 0x12]);
    assert!(bench.crash().ends_with("(reason 0x1234)"));
    bench.status(2, 5, &[0, 0, 0, 0]);
    assert!(!bench.crash().contains("reason"));
    bench.status(2, 5, &[1; 100]);
    assert!(bench.crash().ends_with("(reason 0x101010101010101)"));
}

#[test]
fn stays_ended() {
    let mut bench = Bench::new(Generation::A);
    bench.status(2, 1, &[]);
    assert_eq!(bench.end(), End::PowerOff);
    // The driver leaves the page as it is in further calls, so that it must not be asked again.
    bench.put(uapi::run_page::EXIT_REASON, &[0; 4]);
    assert!(matches!(bench.vcpu.run().unwrap(), Exit::Ended(End::PowerOff)));
}

#[test]
fn ends_a_guest_that_touches_nothing() {
    let mut bench = Bench::new(Generation::C);
    bench.fault(0x9_0000_0000, -libc::ENOENT);
    assert!(bench.crash().starts_with("page fault at guest address 0x900000000"));
    assert!(matches!(bench.vcpu.run().unwrap(), Exit::Ended(End::Crash(_))));
}

#[test]
fn runs_on_after_a_fault_that_may_pass() {
    let mut bench = Bench::new(Generation::C);
    bench.fault(0x8000_0000, -libc::EBUSY);
    assert!(matches!(bench.vcpu.exit().unwrap(), Exit::Handled(_)));
}

#[test]
fn refuses_exit_reasons_of_no_generation() {
    let mut bench = Bench::new(Generation::B);
    bench.put(uapi::run_page::EXIT_REASON, &9u32.to_le_bytes());
    let error = bench.vcpu.exit().unwrap_err().to_string();
    assert!(error.starts_with("GUNYAH_VCPU_RUN of vCPU 3 came back with exit reason 9"), "{error}");
}

#[test]
fn explains_a_refused_run() {
    let mut bench = Bench::new(Generation::A);
    // A file knows no calls.
    let error = bench.vcpu.run().unwrap_err().to_string();
    assert!(error.starts_with("GH_VCPU_RUN for vCPU 3: Inappropriate ioctl for device (ENOTTY)"), "{error}");
}

#[test]
fn answers_a_kick_before_it_hands_over_a_read() {
    let mut bench = Bench::new(Generation::A);
    bench.mmio(0x1000, 4, None);
    bench.vcpu.exit().unwrap();
    bench.put(uapi::run_page::IMMEDIATE_EXIT, &[1]);
    assert!(matches!(bench.vcpu.run().unwrap(), Exit::Interrupted));
    assert!(bench.vcpu.read_answered);
    assert!(!bench.vcpu.page.page().is_kicked());
}

#[test]
fn hands_the_answer_of_a_read_over() {
    let mut bench = Bench::new(Generation::A);
    bench.mmio(0x1000, 4, None);
    match bench.vcpu.exit().unwrap() {
        Exit::MmioRead { data, .. } => data.copy_from_slice(&[1, 2, 3, 4]),
        other => panic!("{other:?}"),
    }
    // The call itself fails, after the page has been filled.
    assert!(bench.vcpu.run().is_err());
    let mut data = [0; 8];
    bench.page.read_exact_at(&mut data, uapi::run_page::MMIO_DATA as u64).unwrap();
    assert_eq!(data, [1, 2, 3, 4, 0, 0, 0, 0]);
}

#[test]
fn is_no_run_page_if_it_is_smaller_than_its_fields() {
    let page = tempfile::tempfile().unwrap();
    page.set_len(4096).unwrap();
    let page = RunPage::map(&page, 39, uapi::run_page::IMMEDIATE_EXIT).unwrap();
    assert!(RunPageView::new(page).is_none());
}
