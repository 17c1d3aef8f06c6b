//! The clock as a device of the machine.
#![forbid(unsafe_code)]

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;

use gvmm_plugin_api::fdt::{FdtNode, FdtValue};
use gvmm_plugin_api::interrupt::Interrupt;
use gvmm_plugin_api::mmio::{AccessError, MmioDevice, MmioLayout, Width};
use gvmm_plugin_api::services::{Clock, Services};
use gvmm_plugin_api::tracing;

use crate::alarm::Alarm;
use crate::registers::{PERIPHERAL_ID, Register, WINDOW};
use crate::rtc::Rtc;

/// Frequency of the bus clock in Hz; it decides nothing.
const CLOCK: u32 = 24_000_000;

/// A PL031 that shows the host's time.
#[derive(Debug)]
pub struct Pl031 {
    services: Services,
    running: OnceLock<Running>,
}

/// What exists once the device has its interrupt line.
#[derive(Debug)]
struct Running {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<Option<()>>>>,
}

/// What the vCPUs and the alarm thread share.
struct Shared {
    rtc: Mutex<Rtc>,
    clock: Arc<dyn Clock>,
    alarm: Alarm,
    line: Interrupt,
}

impl Pl031 {
    /// A clock at power-on.
    pub fn new(services: Services) -> Self {
        Self { services, running: OnceLock::new() }
    }

    fn shared(&self) -> Result<&Shared, AccessError> {
        self.running.get().map(|running| &*running.shared).ok_or(AccessError::Failed)
    }
}

impl MmioDevice for Pl031 {
    fn layout(&self) -> MmioLayout {
        MmioLayout { windows: vec![WINDOW], lines: 1 }
    }

    fn node(&self) -> FdtNode {
        FdtNode::new("rtc", &["arm,pl031", "arm,primecell"])
            .with("arm,primecell-periphid", FdtValue::U32s(vec![PERIPHERAL_ID]))
            .with("clocks", FdtValue::FixedClocks(vec![CLOCK]))
            .with("clock-names", FdtValue::Strings(vec!["apb_pclk".to_owned()]))
    }

    fn start(&self, lines: Vec<Interrupt>) -> Result<(), String> {
        let line = lines.into_iter().next().ok_or("the machine gave it no interrupt line")?;
        let alarm = Alarm::new().map_err(|e| format!("cannot make a timer: {e}"))?;
        let clock = self.services.clock();
        let rtc = Mutex::new(Rtc::new(clock.unix_seconds()));
        let shared = Arc::new(Shared { rtc, clock, alarm, line });
        let waiter = shared.clone();
        let thread = self.services.spawn("pl031", move || waiter.follow_alarm());
        let thread = Mutex::new(Some(thread.map_err(|e| format!("cannot start a thread: {e}"))?));
        self.running.set(Running { shared, thread }).map_err(|_| "it is already started".to_owned())
    }

    fn read(&self, window: u32, offset: u64, width: Width) -> Result<u64, AccessError> {
        let register = decode(window, offset, width)?;
        let shared = self.shared()?;
        let mut rtc = shared.lock();
        let value = rtc.read(shared.clock.unix_seconds(), register);
        shared.interrupt(rtc);
        value.map(u64::from)
    }

    fn write(&self, window: u32, offset: u64, width: Width, value: u64) -> Result<(), AccessError> {
        let register = decode(window, offset, width)?;
        let shared = self.shared()?;
        let mut rtc = shared.lock();
        // The width is that of the register.
        let written = rtc.write(shared.clock.unix_seconds(), register, value as u32);
        shared.set_alarm(&rtc);
        shared.interrupt(rtc);
        written
    }

    fn reset(&self) {
        if let Ok(shared) = self.shared() {
            let mut rtc = shared.lock();
            *rtc = Rtc::new(shared.clock.unix_seconds());
            shared.set_alarm(&rtc);
        }
    }
}

impl Drop for Pl031 {
    fn drop(&mut self) {
        let Some(running) = self.running.get() else { return };
        running.shared.alarm.stop();
        if let Some(thread) = running.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // A panic of the thread has been reported by the thread itself.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Rtc> {
        self.rtc.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_alarm(&self, rtc: &Rtc) {
        if let Err(error) = self.alarm.set(&*self.clock, rtc.deadline()) {
            tracing::warn!("cannot set a timer, the guest's alarm will be late: {}", error.desc());
        }
    }

    /// Gives the lock back and raises the line for what has come up.
    fn interrupt(&self, mut rtc: MutexGuard<'_, Rtc>) {
        let edge = rtc.take_edge();
        drop(rtc);
        if edge {
            self.line.raise();
        }
    }

    /// The alarm thread.
    fn follow_alarm(&self) {
        while self.alarm.wait() {
            let mut rtc = self.lock();
            rtc.advance(self.clock.unix_seconds());
            self.set_alarm(&rtc);
            self.interrupt(rtc);
        }
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("rtc", &self.rtc).finish_non_exhaustive()
    }
}

/// The register of an access: a word.
fn decode(window: u32, offset: u64, width: Width) -> Result<Register, AccessError> {
    if width != Width::Word || !offset.is_multiple_of(4) {
        return Err(AccessError::Width);
    }
    Register::at(offset).filter(|_| window == 0).ok_or(AccessError::NoRegister)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use gvmm_plugin_api::interrupt::Event;
    use gvmm_plugin_api::services::SystemClock;
    use gvmm_plugin_api::testing::{FakeClock, FakeHost, wait_readable};
    use proptest::prelude::*;

    use super::*;

    const DR: u64 = 0x00;
    const MR: u64 = 0x04;
    const LR: u64 = 0x08;
    const IMSC: u64 = 0x10;
    const MIS: u64 = 0x18;
    const ICR: u64 = 0x1c;

    fn start(clock: Arc<dyn Clock>) -> (Pl031, Event) {
        let rtc = Pl031::new(Arc::new(FakeHost::default()).services().with_clock(clock));
        let line = Event::new().unwrap();
        rtc.start(vec![Interrupt::new(line.try_clone().unwrap())]).unwrap();
        (rtc, line)
    }

    fn read(rtc: &Pl031, offset: u64) -> u64 {
        rtc.read(0, offset, Width::Word).unwrap()
    }

    fn write(rtc: &Pl031, offset: u64, value: u64) {
        rtc.write(0, offset, Width::Word, value).unwrap();
    }

    #[test]
    fn shows_the_time_of_its_services() {
        let clock = Arc::new(FakeClock::new(1_000_000));
        let (rtc, _line) = start(clock.clone());
        assert_eq!(read(&rtc, DR), 1_000_000);
        clock.set(1_000_060);
        assert_eq!(read(&rtc, DR), 1_000_060);
    }

    #[test]
    fn an_alarm_interrupts_the_guest_without_its_doing() {
        let (rtc, line) = start(Arc::new(SystemClock));
        write(&rtc, LR, 500);
        write(&rtc, MR, 501);
        write(&rtc, IMSC, 1);
        wait_readable("the alarm", line.as_fd());
        assert!(line.take());
        assert_eq!(read(&rtc, MIS), 1);
        write(&rtc, ICR, 1);
        assert_eq!(read(&rtc, MIS), 0);
    }

    #[test]
    fn an_alarm_follows_a_clock_that_is_not_the_host_s() {
        let clock = Arc::new(FakeClock::new(100));
        let (rtc, line) = start(clock.clone());
        write(&rtc, MR, 101);
        write(&rtc, IMSC, 1);
        assert!(!line.take());
        clock.set(101);
        wait_readable("the alarm", line.as_fd());
    }

    #[test]
    fn an_alarm_that_is_due_shows_at_the_next_access() {
        let clock = Arc::new(FakeClock::new(100));
        let (rtc, line) = start(clock.clone());
        write(&rtc, MR, 5000);
        write(&rtc, IMSC, 1);
        clock.set(6000);
        assert_eq!(read(&rtc, MIS), 1);
        assert!(line.take());
    }

    #[test]
    fn reset_shows_the_time_of_the_host_again_and_twice_is_once() {
        let clock = Arc::new(FakeClock::new(1_000_000));
        let (rtc, line) = start(clock.clone());
        write(&rtc, LR, 5);
        write(&rtc, MR, 6);
        write(&rtc, IMSC, 1);
        for _ in 0..2 {
            rtc.reset();
            assert_eq!([DR, MR, LR, IMSC].map(|offset| read(&rtc, offset)), [1_000_000, 0, 0, 0]);
        }
        clock.set(1_000_001);
        assert_eq!(read(&rtc, MIS), 0);
        assert!(!line.take());
    }

    #[test]
    fn accesses_that_no_register_takes_are_refused() {
        let (rtc, _line) = start(Arc::new(SystemClock));
        assert_eq!(rtc.read(0, DR, Width::Half), Err(AccessError::Width));
        assert_eq!(rtc.read(0, DR, Width::Double), Err(AccessError::Width));
        assert_eq!(rtc.read(0, DR + 2, Width::Word), Err(AccessError::Width));
        assert_eq!(rtc.read(0, 0x20, Width::Word), Err(AccessError::NoRegister));
        assert_eq!(rtc.read(1, DR, Width::Word), Err(AccessError::NoRegister));
        assert_eq!(rtc.write(0, DR, Width::Word, 0), Err(AccessError::Direction));
    }

    #[test]
    fn the_node_is_the_one_that_linux_binds_its_driver_to() {
        let (rtc, _line) = start(Arc::new(SystemClock));
        let node = rtc.node();
        assert_eq!((node.name.as_str(), node.console), ("rtc", false));
        assert_eq!(node.compatible, ["arm,pl031", "arm,primecell"]);
        assert_eq!(rtc.layout(), MmioLayout { windows: vec![0x1000], lines: 1 });
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn no_access_of_any_width_at_any_offset_panics(
            accesses in prop::collection::vec((any::<bool>(), 0..0x1000_u64, 0..4_usize, any::<u64>()), 1..200),
        ) {
            let (rtc, _line) = start(Arc::new(SystemClock));
            for (write, offset, width, value) in accesses {
                let width = Width::ALL[width];
                let offset = if value & 1 == 0 { offset } else { offset & 0x1c };
                if offset + width.bytes() as u64 > WINDOW {
                    continue;
                }
                if write {
                    let _ = rtc.write(0, offset, width, value);
                } else if let Ok(read) = rtc.read(0, offset, width) {
                    prop_assert!(read <= u64::from(u32::MAX));
                }
            }
            rtc.reset();
        }
    }
}
