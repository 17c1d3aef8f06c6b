//! Virtio I2C bus (virtio 1.2, 5.15) with one temperature sensor on it, an LM75, that shows a temperature of the host.
//!
//! - [`lm75`]: the sensor. [`temperature`]: where its value comes from.
//! - [`transfer`]: a request of the driver. [`device`]: the plugin interface and the queue.
#![deny(unsafe_code)]

mod device;
#[cfg(test)]
mod device_test;
mod lm75;
mod temperature;
mod transfer;

use std::path::PathBuf;

use gvmm_plugin_api::options::{OptionKind, PathAccess};
use gvmm_plugin_api::services::Services;
use gvmm_plugin_api::{Device, export_plugin, options};

options! {
    /// Options of the bus.
    pub struct Options {
        /// File with the temperature in thousandths of a degree Celsius, as files of sysfs have it; it is read each time
        /// that the guest asks. Without it the sensor shows 25 degrees.
        pub file: Option<PathBuf> = optional("file", OptionKind::Path(PathAccess::Read)),
        /// Address of the sensor on the bus.
        pub address: u64 = with_default("address", "0x48", OptionKind::Integer { min: 0x08, max: 0x77 }),
    }
}

/// Makes a bus.
pub fn create(options: Options, services: Services) -> Result<Device, String> {
    let temperature = temperature::Temperature::new(options.file)?;
    // The schema allows seven bits.
    Ok(Device::virtio(device::Bus::new(options.address as u8, temperature, services)))
}

export_plugin! {
    id: "org.example.virtio_i2c",
    name: "virtio_i2c",
    vendor: "Example",
    url: "",
    description: "Virtio I2C bus with a temperature sensor (LM75)",
    kind: Virtio(device::DEVICE_TYPE),
    options: Options,
    create: create,
}
