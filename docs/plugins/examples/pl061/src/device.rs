//! The controller as a device of the machine.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use gvmm_plugin_api::fdt::{ExtraNode, FdtNode, FdtValue};
use gvmm_plugin_api::interrupt::{Event, Interrupt};
use gvmm_plugin_api::mmio::{AccessError, MmioDevice, MmioLayout, Width};
use gvmm_plugin_api::services::Services;

use crate::control::{Control, Listener};
use crate::nodes::Attached;
use crate::port::Port;
use crate::registers::{PERIPHERAL_ID, Register, WINDOW};

/// Frequency of the bus clock in Hz; it decides nothing.
const CLOCK: u32 = 24_000_000;

/// A PL061.
#[derive(Debug)]
pub(crate) struct Pl061 {
    services: Services,
    lines: Arc<Lines>,
    attached: Attached,
    /// Until the device starts.
    listener: Mutex<Option<Listener>>,
    control: OnceLock<Control>,
}

/// What the vCPUs and the thread of the socket share.
#[derive(Debug)]
pub(crate) struct Lines {
    port: Mutex<Port>,
    interrupt: OnceLock<Interrupt>,
    /// Signalled when the guest may have changed a line.
    pub(crate) changed: Event,
}

impl Lines {
    pub(crate) fn new(outside: u8) -> std::io::Result<Self> {
        let port = Mutex::new(Port::new(outside));
        Ok(Self { port, interrupt: OnceLock::new(), changed: Event::new()? })
    }

    /// Lines that are outputs, and the levels of all.
    pub(crate) fn state(&self) -> (u8, u8) {
        let port = self.lock();
        (port.outputs(), port.levels())
    }

    /// Gives a line a level from the outside.
    pub(crate) fn set_outside(&self, line: u8, high: bool) {
        let mut port = self.lock();
        port.set_outside(line, high);
        self.interrupt(port);
    }

    fn lock(&self) -> MutexGuard<'_, Port> {
        self.port.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the lock back and raises the interrupt line for what has come up.
    fn interrupt(&self, mut port: MutexGuard<'_, Port>) {
        let new = port.take_new();
        drop(port);
        if new && let Some(line) = self.interrupt.get() {
            line.raise();
        }
    }
}

impl Pl061 {
    /// A controller at power-on, with the socket if there is to be one.
    pub(crate) fn new(
        socket: Option<&Path>,
        outside: u8,
        attached: Attached,
        services: Services,
    ) -> Result<Self, String> {
        let lines = Lines::new(outside).map_err(|e| format!("cannot make an eventfd: {e}"))?;
        let listener = Mutex::new(socket.map(Listener::bind).transpose()?);
        Ok(Self { services, lines: Arc::new(lines), attached, listener, control: OnceLock::new() })
    }
}

impl MmioDevice for Pl061 {
    fn layout(&self) -> MmioLayout {
        MmioLayout { windows: vec![WINDOW], lines: 1 }
    }

    fn node(&self) -> FdtNode {
        FdtNode::new("gpio", &["arm,pl061", "arm,primecell"])
            .with("arm,primecell-periphid", FdtValue::U32s(vec![PERIPHERAL_ID]))
            .with("gpio-controller", FdtValue::Empty)
            .with("#gpio-cells", FdtValue::U32s(vec![2]))
            .with("interrupt-controller", FdtValue::Empty)
            .with("#interrupt-cells", FdtValue::U32s(vec![2]))
            .with("clocks", FdtValue::FixedClocks(vec![CLOCK]))
            .with("clock-names", FdtValue::Strings(vec!["apb_pclk".to_owned()]))
    }

    fn nodes_beside(&self) -> Vec<ExtraNode> {
        self.attached.nodes()
    }

    fn start(&self, lines: Vec<Interrupt>) -> Result<(), String> {
        let line = lines.into_iter().next().ok_or("the machine gave it no interrupt line")?;
        self.lines.interrupt.set(line).map_err(|_| "it is already started".to_owned())?;
        let Some(listener) = self.listener.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            return Ok(());
        };
        let control = Control::start(listener, self.lines.clone(), &self.services);
        let control = control.map_err(|e| format!("cannot start a thread: {e}"))?;
        self.control.set(control).map_err(|_| "it is already started".to_owned())
    }

    fn read(&self, window: u32, offset: u64, width: Width) -> Result<u64, AccessError> {
        let register = decode(window, offset, width)?;
        self.lines.lock().read(register).map(u64::from)
    }

    fn write(&self, window: u32, offset: u64, width: Width, value: u64) -> Result<(), AccessError> {
        let register = decode(window, offset, width)?;
        let mut port = self.lines.lock();
        // All registers have eight bits.
        port.write(register, value as u8)?;
        self.lines.interrupt(port);
        if matches!(register, Register::Data { .. } | Register::Direction) {
            self.lines.changed.signal();
        }
        Ok(())
    }

    fn reset(&self) {
        self.lines.lock().reset();
        self.lines.changed.signal();
    }
}

/// The register of an access of up to a word; registers are a word apart.
fn decode(window: u32, offset: u64, width: Width) -> Result<Register, AccessError> {
    if width == Width::Double || !offset.is_multiple_of(4) {
        return Err(AccessError::Width);
    }
    Register::at(offset).filter(|_| window == 0).ok_or(AccessError::NoRegister)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed expectation fails the test")]

    use gvmm_plugin_api::testing::FakeHost;

    use super::*;

    const EVENT: u64 = 0x40c;
    const ENABLE: u64 = 0x410;
    const MASKED: u64 = 0x418;
    const CLEAR: u64 = 0x41c;

    fn started() -> (Pl061, Event) {
        let device =
            Pl061::new(None, 0, Attached::default(), Arc::new(FakeHost::default()).services()).unwrap();
        let line = Event::new().unwrap();
        device.start(vec![Interrupt::new(line.try_clone().unwrap())]).unwrap();
        (device, line)
    }

    #[test]
    fn a_line_that_goes_up_interrupts_the_guest() {
        let (device, line) = started();
        device.write(0, EVENT, Width::Byte, 1 << 3).unwrap();
        device.write(0, ENABLE, Width::Byte, 1 << 3).unwrap();
        device.lines.set_outside(3, true);
        assert!(line.take());
        assert_eq!(device.read(0, MASKED, Width::Byte), Ok(1 << 3));
        device.write(0, CLEAR, Width::Byte, 1 << 3).unwrap();
        assert_eq!(device.read(0, MASKED, Width::Byte), Ok(0));
        assert!(!line.take());
    }

    #[test]
    fn accesses_that_no_register_takes_are_refused() {
        let (device, _line) = started();
        assert_eq!(device.read(0, 0x400, Width::Double), Err(AccessError::Width));
        assert_eq!(device.read(0, 0x401, Width::Byte), Err(AccessError::Width));
        assert_eq!(device.read(0, 0x424, Width::Word), Err(AccessError::NoRegister));
        assert_eq!(device.read(1, 0x400, Width::Word), Err(AccessError::NoRegister));
    }

    #[test]
    fn the_node_is_the_one_that_linux_binds_its_driver_to() {
        let (device, _line) = started();
        let node = device.node();
        assert_eq!(node.compatible, ["arm,pl061", "arm,primecell"]);
        assert!(node.properties.iter().any(|(name, _)| name == "gpio-controller"));
    }
}
