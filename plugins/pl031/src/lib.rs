//! Arm PrimeCell real-time clock (PL031, Arm DDI 0224 r1p3) that shows the host's time.
#![deny(unsafe_code)]

mod alarm;
mod device;
mod registers;
mod rtc;

pub use device::Pl031;
use gvmm_plugin_api::services::Services;
use gvmm_plugin_api::{Device, export_plugin, options};

options! {
    /// Options of the clock: it has none.
    pub struct Options {}
}

/// Makes a clock.
pub fn create(_options: Options, services: Services) -> Result<Device, String> {
    Ok(Device::mmio(Pl031::new(services)))
}

export_plugin! {
    id: "org.gvmm.pl031",
    name: "pl031",
    vendor: "gvmm",
    url: "",
    description: "Arm PL031 real-time clock that shows the host's time",
    kind: Mmio,
    options: Options,
    create: create,
    syscalls: ["ppoll", "timerfd_create", "timerfd_settime"],
}
