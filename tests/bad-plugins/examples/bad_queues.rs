//! A virtio device that does one thing wrong.
#![allow(clippy::unwrap_used, reason = "it misbehaves anyway")]

use std::sync::Mutex;

use gvmm_plugin_api::options::OptionKind;
use gvmm_plugin_api::queue::{QueueError, VirtQueue, total_len};
use gvmm_plugin_api::services::Services;
use gvmm_plugin_api::virtio::{COMMON_FEATURES, QueueSetup, QueueState, VirtioDevice, VirtioTraits};
use gvmm_plugin_api::worker::{QueueHandler, QueueWorkers};
use gvmm_plugin_api::{Device, export_plugin, options};

/// A number that no virtio device has.
const DEVICE_TYPE: u32 = 63;
const CONFIG: [u8; 8] = *b"01234567";

options! {
    /// What it does wrong.
    pub struct Options {
        /// The one thing.
        pub how: String = with_default("how", "nothing", OptionKind::Choice(&[
            "nothing", "other-type", "odd-queue-size", "config-panics", "config-shifts", "keeps-config",
            "forgets-state", "takes-any-queue", "swallows", "scribbles", "long-answers", "trusts-chains",
            "knows-its-host", "leaves-thread",
        ])),
    }
}

struct Bad {
    how: String,
    workers: QueueWorkers,
    config: Mutex<[u8; 8]>,
}

/// Copies what it reads to where it may write, or what it does instead.
struct Copier {
    how: String,
    far: bool,
}

impl QueueHandler for Copier {
    fn process(&mut self, queue: &mut VirtQueue) -> Result<(), QueueError> {
        for _ in 0..32 {
            let Some(chain) = queue.pop()? else { break };
            if self.how == "swallows" {
                continue;
            }
            let len = total_len(chain.readable()).min(total_len(chain.writable())).min(4096);
            let mut data = vec![0; len as usize];
            chain.read(queue.memory(), 0, &mut data)?;
            chain.write(queue.memory(), 0, &data)?;
            match self.how.as_str() {
                "scribbles" => queue.memory().write(chain.readable()[0].address, b"!")?,
                "trusts-chains" => _ = chain.writable()[0],
                _ => {}
            }
            let written = match self.how.as_str() {
                "long-answers" => 1 << 20,
                "knows-its-host" if self.far => 0,
                _ => len as u32,
            };
            queue.push(chain, written)?;
        }
        Ok(())
    }
}

impl VirtioDevice for Bad {
    fn traits(&self) -> VirtioTraits {
        VirtioTraits {
            device_type: if self.how == "other-type" { 5 } else { DEVICE_TYPE },
            features: COMMON_FEATURES,
            queue_sizes: vec![if self.how == "odd-queue-size" { 24 } else { 16 }; 2],
            config_size: 8,
        }
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) {
        let config = self.config.lock().unwrap();
        let from = offset as usize;
        assert!(self.how != "config-panics" || data.len() < 3, "no such field");
        let from = if self.how == "config-shifts" && from > 0 { from - 1 } else { from };
        data.copy_from_slice(&config[from..from + data.len()]);
    }

    fn write_config(&self, offset: u32, data: &[u8]) {
        let from = offset as usize;
        self.config.lock().unwrap()[from..from + data.len()].copy_from_slice(data);
    }

    fn start_queue(&self, index: u16, setup: QueueSetup) -> Result<(), String> {
        if index > 1 && self.how != "takes-any-queue" {
            return Err(format!("there is no queue {index}"));
        }
        let far = setup.inflight.is_some();
        self.workers.start(index, setup, Copier { how: self.how.clone(), far })
    }

    fn stop_queue(&self, index: u16) -> Option<QueueState> {
        let state = self.workers.stop(index)?;
        Some(if self.how == "forgets-state" { QueueState::default() } else { state })
    }

    fn reset(&self) {
        if self.how != "keeps-config" {
            *self.config.lock().unwrap() = CONFIG;
        }
    }
}

impl Drop for Bad {
    fn drop(&mut self) {
        if self.how == "leaves-thread" {
            std::thread::spawn(|| std::thread::sleep(std::time::Duration::from_secs(3600)));
        }
    }
}

fn create(options: Options, services: Services) -> Result<Device, String> {
    let workers = QueueWorkers::new(services);
    Ok(Device::virtio(Bad { how: options.how, workers, config: Mutex::new(CONFIG) }))
}

export_plugin! {
    id: "org.gvmm.bad.queues",
    name: "bad_queues",
    vendor: "gvmm",
    url: "",
    description: "Does one thing wrong, of one's choice",
    kind: Virtio(DEVICE_TYPE),
    options: Options,
    create: create,
}
