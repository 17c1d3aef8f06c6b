//! A virtio device that copies, and attacks its host when a request begins with the word for it.
#![allow(clippy::unwrap_used, reason = "it misbehaves anyway")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use gvmm_plugin_api::interrupt::{Event, Interrupt};
use gvmm_plugin_api::queue::{QueueError, VirtQueue, total_len};
use gvmm_plugin_api::services::Services;
use gvmm_plugin_api::virtio::{COMMON_FEATURES, QueueSetup, QueueState, VirtioDevice, VirtioTraits};
use gvmm_plugin_api::worker::{QueueHandler, QueueWorkers};
use gvmm_plugin_api::{Device, export_plugin, options};

/// A number that no virtio device has.
const DEVICE_TYPE: u32 = 63;

options! {
    /// It has none.
    pub struct Options {}
}

struct Hostile {
    workers: QueueWorkers,
    services: Services,
    hangs: Arc<AtomicBool>,
}

struct Attacker {
    services: Services,
    hangs: Arc<AtomicBool>,
    call: Event,
    used_ring: u64,
}

impl QueueHandler for Attacker {
    fn process(&mut self, queue: &mut VirtQueue) -> Result<(), QueueError> {
        while let Some(chain) = queue.pop()? {
            let len = total_len(chain.readable()).min(total_len(chain.writable())).min(4096);
            let mut data = vec![0; len as usize];
            chain.read(queue.memory(), 0, &mut data)?;
            if data.starts_with(b"crash") {
                std::process::abort();
            }
            chain.write(queue.memory(), 0, &data)?;
            queue.push(chain, len as u32)?;
            match data.as_slice() {
                b"hang" => self.hang(),
                b"flood" => self.flood(),
                b"garbage" => self.write_garbage(queue)?,
                _ => {}
            }
        }
        Ok(())
    }
}

impl Attacker {
    /// Never again answers a question for the configuration, and provokes one.
    fn hang(&self) {
        self.hangs.store(true, Ordering::Relaxed);
        self.services.config_changed();
    }

    /// Interrupts, notices of changes, failures and log lines without end.
    fn flood(&self) {
        let (call, services) = (Interrupt::new(self.call.try_clone().unwrap()), self.services.clone());
        let flood = move || {
            for count in 0_u64.. {
                call.raise();
                if count.is_multiple_of(64) {
                    services.config_changed();
                    gvmm_plugin_api::tracing::error!("flood {count}");
                }
            }
        };
        drop(self.services.spawn("flood", flood).unwrap());
    }

    /// Completes what nobody asked for, with lengths that cannot be, far ahead of the driver.
    fn write_garbage(&self, queue: &VirtQueue) -> Result<(), QueueError> {
        queue.memory().fill(self.used_ring, 4 + 8 * usize::from(queue.size()), 0xb7)?;
        Ok(())
    }
}

impl VirtioDevice for Hostile {
    fn traits(&self) -> VirtioTraits {
        VirtioTraits {
            device_type: DEVICE_TYPE,
            features: COMMON_FEATURES,
            queue_sizes: vec![16; 2],
            config_size: 8,
        }
    }

    fn read_config(&self, _: u32, data: &mut [u8]) {
        while self.hangs.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_secs(1));
        }
        data.fill(0);
    }

    fn write_config(&self, _: u32, _: &[u8]) {}

    fn start_queue(&self, index: u16, mut setup: QueueSetup) -> Result<(), String> {
        let call = setup.call.into_event();
        let copy = call.try_clone().map_err(|e| e.to_string())?;
        setup.call = Interrupt::new(call);
        let (services, hangs) = (self.services.clone(), self.hangs.clone());
        let used_ring = setup.used_ring;
        self.workers.start(index, setup, Attacker { services, hangs, call: copy, used_ring })
    }

    fn stop_queue(&self, index: u16) -> Option<QueueState> {
        self.workers.stop(index)
    }

    fn reset(&self) {}
}

fn create(_: Options, services: Services) -> Result<Device, String> {
    let workers = QueueWorkers::new(services.clone());
    Ok(Device::virtio(Hostile { workers, services, hangs: Arc::default() }))
}

export_plugin! {
    id: "org.gvmm.bad.hostile",
    name: "hostile",
    vendor: "gvmm",
    url: "",
    description: "Attacks its host when it is told to",
    kind: Virtio(DEVICE_TYPE),
    options: Options,
    create: create,
}
