//! A device for the tests of transports.

use std::sync::Mutex;

use gvmm_plugin_api::virtio::{COMMON_FEATURES, QueueSetup, QueueState, VirtioDevice, VirtioTraits};

/// Notes what the transport asks of it, and interrupts for each queue that starts.
#[derive(Default)]
pub(crate) struct Recorder {
    pub(crate) calls: Mutex<Vec<String>>,
    pub(crate) config: Mutex<[u8; 12]>,
}

impl VirtioDevice for Recorder {
    fn traits(&self) -> VirtioTraits {
        VirtioTraits {
            device_type: 2,
            features: COMMON_FEATURES | 1,
            queue_sizes: vec![16, 8],
            config_size: 12,
        }
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) {
        let config = self.config.lock().unwrap();
        data.copy_from_slice(&config[offset as usize..offset as usize + data.len()]);
    }

    fn write_config(&self, offset: u32, data: &[u8]) {
        self.config.lock().unwrap()[offset as usize..offset as usize + data.len()].copy_from_slice(data);
    }

    fn start_queue(&self, index: u16, setup: QueueSetup) -> Result<(), String> {
        let QueueSetup { size, descriptor_table, features, .. } = setup;
        let call = format!("start {index} size {size} at {descriptor_table:#x} features {features:#x}");
        self.calls.lock().unwrap().push(call);
        setup.call.raise();
        Ok(())
    }

    fn stop_queue(&self, index: u16) -> Option<QueueState> {
        self.calls.lock().unwrap().push(format!("stop {index}"));
        Some(QueueState::default())
    }

    fn reset(&self) {
        self.calls.lock().unwrap().push("reset".to_owned());
    }
}
