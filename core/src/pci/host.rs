//! The host: one bus, reached through ECAM, and a window of addresses for the BARs on it
//! (Linux bindings, pci/host-generic-pci: pci-host-ecam-generic).

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use gvmm_plugin_api::mmio::{AccessError, Width};

use super::config::SIZE;
use super::function::{BarAccess, FunctionSpec, PciFunction};
use super::v2m::V2mFrame;
use crate::bus::{AccessCount, Registers};
use crate::hypervisor::{ReadableRegisters, Wiring};
use crate::memory::RegisterImage;

/// Bytes of ECAM for one bus.
pub const ECAM_SIZE: u64 = 1 << 20;
/// Devices on a bus, each of one function.
pub const MAX_DEVICES: usize = 32;

/// Bytes of ECAM for one function (PCI Express Base Specification 3.0, 7.2.2).
const FUNCTION_SIZE: u64 = 0x1000;
/// Functions that a device may have.
const FUNCTIONS: u64 = 8;
/// What a read gives that nobody answers.
const NOBODY: u64 = u64::MAX;

/// The host with everything on its bus.
pub struct PciHost {
    functions: Vec<PciFunction>,
    /// Configuration space of the bus as memory, once somebody wants it.
    image: OnceLock<Option<Arc<RegisterImage>>>,
    frame: Arc<V2mFrame>,
    ecam: u64,
    window: Range<u64>,
}

impl PciHost {
    /// A host of these functions, in the order of their devices, with [`ECAM_SIZE`] bytes of ECAM at an address, whose
    /// BARs are led through a window. Errors name the device.
    pub fn new(
        specs: Vec<FunctionSpec>,
        frame: Arc<V2mFrame>,
        ecam: u64,
        window: Range<u64>,
    ) -> Result<Self, String> {
        let mut free = window.start;
        let mut functions = Vec::new();
        for spec in specs {
            let named = format!("device {}", spec.id);
            if functions.len() == MAX_DEVICES {
                return Err(format!(
                    "{named}: all {MAX_DEVICES} places on the PCI bus are taken: add transport=mmio"
                ));
            }
            let function = PciFunction::new(spec, frame.clone(), window.clone(), &mut free);
            functions.push(function.map_err(|error| format!("{named}: {error}"))?);
        }
        Ok(Self { functions, image: OnceLock::new(), frame, ecam, window })
    }

    /// What reads of configuration space give; `None` on machines that cannot map it. It is right as long as the wiring
    /// shows it.
    pub(super) fn image(&self) -> Option<&Arc<RegisterImage>> {
        self.image.get_or_init(|| self.make_image()).as_ref()
    }

    fn make_image(&self) -> Option<Arc<RegisterImage>> {
        let place_of = |device| device * (FUNCTIONS * FUNCTION_SIZE) as usize;
        let image =
            RegisterImage::sparse(ECAM_SIZE as usize, (0..self.functions.len()).map(place_of).collect());
        let image =
            image.inspect_err(|error| tracing::debug!("no memory shows configuration space: {error}"));
        let image = Arc::new(image.ok()?);
        for (device, function) in self.functions.iter().enumerate() {
            function.show_in(image.clone(), place_of(device), self.ecam);
        }
        Some(image)
    }

    /// The functions: device 0, 1 and so on.
    pub fn functions(&self) -> &[PciFunction] {
        &self.functions
    }

    /// Where their messages go.
    pub fn frame(&self) -> &V2mFrame {
        &self.frame
    }

    /// Address of configuration space.
    pub fn ecam(&self) -> u64 {
        self.ecam
    }

    /// The addresses of BARs.
    pub fn window(&self) -> Range<u64> {
        self.window.clone()
    }

    /// Takes the wiring of a VM that has started. No vCPU runs.
    pub fn attach(&self, wiring: &Arc<dyn Wiring>) {
        self.frame.attach(Some(wiring.clone()));
        for function in &self.functions {
            function.attach(wiring.clone());
        }
        if wiring.shows_registers() {
            self.show_config(&**wiring);
        }
    }

    /// Has the guest read configuration space as memory. The VM's end undoes it.
    fn show_config(&self, wiring: &dyn Wiring) {
        let Some(image) = self.image() else { return };
        let registers = ReadableRegisters { base: self.ecam, image: image.clone() };
        if let Err(error) = wiring.show_registers(&registers) {
            tracing::debug!("reads of configuration space are exits: {error}");
        }
    }

    /// Back to the state after power-on, before the VM is taken down. No vCPU runs.
    pub fn detach(&self) {
        for function in &self.functions {
            function.detach();
        }
        self.frame.attach(None);
    }

    /// Accesses that reached user space, by device.
    pub fn counts(&self) -> impl Iterator<Item = AccessCount> {
        self.functions.iter().map(PciFunction::count)
    }

    /// The function and the offset in its configuration space that an offset in ECAM is for.
    fn configured(&self, offset: u64) -> Option<(&PciFunction, usize)> {
        let (number, register) = (offset / FUNCTION_SIZE, (offset % FUNCTION_SIZE) as usize);
        let first_function = number.is_multiple_of(FUNCTIONS);
        let device =
            usize::try_from(number / FUNCTIONS).ok().filter(|_| first_function && register < SIZE)?;
        self.functions.get(device).map(|function| (function, register))
    }

    /// The function whose BAR an access goes to. Where the guest has put two at one place, the first answers.
    fn decoded(&self, offset: u64, width: Width) -> Option<(&PciFunction, BarAccess<'_>)> {
        let address = self.window.start + offset;
        self.functions.iter().find_map(|function| Some((function, function.decode(address, width)?)))
    }
}

/// Configuration space of the bus.
pub struct Ecam(pub Arc<PciHost>);

impl Registers for Ecam {
    fn read(&self, offset: u64, width: Width) -> Result<u64, AccessError> {
        Ok(self.0.configured(offset).map_or(NOBODY, |(function, at)| function.read_config(at, width)))
    }

    fn write(&self, offset: u64, width: Width, value: u64) -> Result<(), AccessError> {
        if let Some((function, at)) = self.0.configured(offset) {
            function.write_config(at, width, value);
        }
        Ok(())
    }
}

/// The addresses of BARs.
pub struct Window(pub Arc<PciHost>);

impl Registers for Window {
    fn read(&self, offset: u64, width: Width) -> Result<u64, AccessError> {
        self.0.decoded(offset, width).map_or(Ok(NOBODY), |(function, access)| function.read(access))
    }

    fn write(&self, offset: u64, width: Width, value: u64) -> Result<(), AccessError> {
        self.0.decoded(offset, width).map_or(Ok(()), |(function, access)| function.write(access, value))
    }
}
