//! The page a vCPU descriptor maps (rule 1.3).

use crate::host::shared_page::SharedPage;

use super::Generation;

const IMMEDIATE_EXIT: usize = 0;
const EXIT_REASON: usize = 8;

const MMIO_ADDR: usize = 16;
const MMIO_DATA: usize = 24;
const MMIO_LEN: usize = 32;
const MMIO_IS_WRITE: usize = 36;
const MMIO_RESUME_ACTION: usize = 37;

const STATUS: usize = 16;
const STATUS_EXIT_TYPE: usize = 20;
const STATUS_REASON_SIZE: usize = 24;
const STATUS_REASON: usize = 28;

const FAULT_ADDR: usize = 16;
const FAULT_ATTEMPT: usize = 24;
const FAULT_RESUME_ACTION: usize = 28;

const REASON_MMIO: u32 = 1;
const REASON_STATUS: u32 = 2;
const REASON_PAGE_FAULT: u32 = 3;

/// Bytes of exit reason the Resource Manager sent in every case measured (rule 9).
const REASON_BYTES: u32 = 4;

/// What the program wants done with an access when it calls RUN again (B and C).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ResumeAction {
    Handled,
    Fault,
    /// RETRY, or a number without meaning.
    Other(u8),
}

/// How the VM ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ExitStatus {
    /// LOAD_FAILED 1, EXITED 2, CRASHED 3.
    pub(crate) status: u32,
    /// `exit_info.type`: 1 power-off, 2 reset, ... (rule 1.3).
    pub(crate) exit_type: u16,
}

/// `status` of a VM that the Resource Manager reports as exited.
pub(crate) const STATUS_EXITED: u32 = 2;

/// One access of the guest inside the trap window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    pub(crate) addr: u64,
    /// 1, 2, 4 or 8.
    pub(crate) len: u8,
    /// The value written; `None` for a read.
    pub(crate) write: Option<u64>,
}

/// A vCPU's run page. The program may write any byte at any time.
pub(crate) struct RunPage {
    page: SharedPage,
    generation: Generation,
}

impl RunPage {
    pub(crate) fn new(page: SharedPage, generation: Generation) -> RunPage {
        RunPage { page, generation }
    }

    /// The memory itself, to be mapped into the program.
    pub(crate) fn shared(&self) -> &SharedPage {
        &self.page
    }

    pub(crate) fn immediate_exit(&self) -> bool {
        self.page.load(IMMEDIATE_EXIT) != 0
    }

    /// Describes an access. Read data is left as it was, as the driver does.
    pub(crate) fn report_access(&self, access: Access) {
        self.page.store(MMIO_IS_WRITE, u8::from(access.write.is_some()));
        if let Some(value) = access.write {
            let bytes = value.to_le_bytes();
            let len = usize::from(access.len).min(bytes.len());
            self.store(MMIO_DATA, bytes.get(..len).unwrap_or_default());
        }
        if self.generation != Generation::A {
            // Preset to HANDLED (rule 4).
            self.page.store(MMIO_RESUME_ACTION, 0);
        }
        self.store(MMIO_ADDR, &access.addr.to_le_bytes());
        self.store(MMIO_LEN, &u32::from(access.len).to_le_bytes());
        self.store(EXIT_REASON, &REASON_MMIO.to_le_bytes());
    }

    /// Describes the end of the VM. `exit_info.reason` is zero (rule 9).
    pub(crate) fn report_status(&self, exit: ExitStatus) {
        self.store(STATUS, &exit.status.to_le_bytes());
        self.store(STATUS_EXIT_TYPE, &exit.exit_type.to_le_bytes());
        self.store(STATUS_REASON_SIZE, &REASON_BYTES.to_le_bytes());
        self.store(STATUS_REASON, &[0; 8]);
        self.store(EXIT_REASON, &REASON_STATUS.to_le_bytes());
    }

    /// Describes a page fault whose own handling in the kernel ended with `errno` (positive). B and C only.
    pub(crate) fn report_page_fault(&self, addr: u64, errno: i32) {
        // Preset to FAULT (rule 4).
        self.page.store(FAULT_RESUME_ACTION, 1);
        self.store(FAULT_ATTEMPT, &(-errno).to_le_bytes());
        self.store(FAULT_ADDR, &addr.to_le_bytes());
        self.store(EXIT_REASON, &REASON_PAGE_FAULT.to_le_bytes());
    }

    /// The data the program put in for a read of `len` bytes.
    pub(crate) fn read_data(&self, len: u8) -> u64 {
        let mut bytes = [0; 8];
        let len = usize::from(len).min(bytes.len());
        for (index, byte) in bytes.iter_mut().take(len).enumerate() {
            *byte = self.page.load(MMIO_DATA + index);
        }
        u64::from_le_bytes(bytes)
    }

    /// The program's verdict on the last access. A has none: always handled.
    pub(crate) fn resume_action(&self) -> ResumeAction {
        if self.generation == Generation::A {
            return ResumeAction::Handled;
        }
        match self.page.load(MMIO_RESUME_ACTION) {
            0 => ResumeAction::Handled,
            1 => ResumeAction::Fault,
            other => ResumeAction::Other(other),
        }
    }

    fn store(&self, offset: usize, bytes: &[u8]) {
        for (index, byte) in bytes.iter().enumerate() {
            self.page.store(offset + index, *byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(generation: Generation) -> RunPage {
        RunPage::new(SharedPage::new().unwrap(), generation)
    }

    fn bytes(page: &RunPage, offset: usize, len: usize) -> Vec<u8> {
        (offset..offset + len).map(|at| page.page.load(at)).collect()
    }

    #[test]
    fn an_access_lies_at_the_offsets_of_the_header() {
        let page = page(Generation::C);
        page.page.store(MMIO_RESUME_ACTION, 9);
        page.report_access(Access { addr: 0x1_0203_0405, len: 4, write: Some(0xaabb_ccdd) });
        assert_eq!(bytes(&page, 8, 4), [1, 0, 0, 0]);
        assert_eq!(bytes(&page, 16, 8), [5, 4, 3, 2, 1, 0, 0, 0]);
        assert_eq!(bytes(&page, 24, 4), [0xdd, 0xcc, 0xbb, 0xaa]);
        assert_eq!(bytes(&page, 32, 6), [4, 0, 0, 0, 1, 0]);
    }

    #[test]
    fn generation_a_has_no_resume_action() {
        let page = page(Generation::A);
        page.page.store(MMIO_RESUME_ACTION, 2);
        page.report_access(Access { addr: 0, len: 1, write: None });
        assert_eq!(bytes(&page, MMIO_RESUME_ACTION, 1), [2]);
        assert_eq!(page.resume_action(), ResumeAction::Handled);
    }

    #[test]
    fn a_status_and_a_page_fault_share_the_union() {
        let page = page(Generation::C);
        page.report_status(ExitStatus { status: STATUS_EXITED, exit_type: 2 });
        assert_eq!(bytes(&page, 8, 4), [2, 0, 0, 0]);
        assert_eq!(bytes(&page, 16, 6), [2, 0, 0, 0, 2, 0]);
        assert_eq!(bytes(&page, 24, 8), [4, 0, 0, 0, 0, 0, 0, 0]);

        page.report_page_fault(0x9000_0000, libc::ENOMEM);
        assert_eq!(bytes(&page, 8, 4), [3, 0, 0, 0]);
        assert_eq!(bytes(&page, 24, 4), (-12i32).to_le_bytes());
        assert_eq!(bytes(&page, 28, 1), [1]);
    }

    #[test]
    fn read_data_is_cut_to_the_access() {
        let page = page(Generation::A);
        page.store(MMIO_DATA, &[0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88]);
        assert_eq!(page.read_data(2), 0x2211);
        assert_eq!(page.read_data(8), 0x8877_6655_4433_2211);
    }
}
