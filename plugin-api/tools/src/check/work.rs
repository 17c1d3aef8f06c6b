//! Queues, and requests that suit a device of any type.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gvmm_plugin_api::testing::{Buffer, FakeMemory, QueueDriver, VirtioHarness};
use gvmm_plugin_api::virtio::{QueueState, VirtioDevice};

use super::random::Random;

/// Bytes of guest memory: rings, then requests.
const MEMORY: usize = 8 << 20;
/// Queues that get requests, and the largest that they are made; what the test kit has room for.
const MAX_QUEUES: usize = 16;
const MAX_SIZE: u16 = 1024;
/// Requests in a queue.
const REQUESTS: u64 = 8;
/// Room for one request, its buffers being apart from each other and from those of others.
const SLOT: u64 = 0x2000;
const READABLE_AT: u64 = 0x100;
const WRITABLE_AT: u64 = 0x1000;
/// What is in memory where no buffer is.
const BACKGROUND: u8 = 0xa5;
/// A device that has completed nothing for so long is waiting for something else than requests.
const IDLE: Duration = Duration::from_millis(300);
/// Pause between two looks at the used rings.
const PAUSE: Duration = Duration::from_micros(500);

/// A device with its guest memory and a driver that accepts all features.
pub(super) struct Plug {
    device: Arc<dyn VirtioDevice>,
    memory: Arc<FakeMemory>,
    sizes: Vec<u16>,
    features: u64,
}

/// A queue with requests in it.
pub(super) struct Loaded {
    pub(super) index: u16,
    pub(super) driver: QueueDriver,
    /// By head.
    pub(super) requests: BTreeMap<u16, Request>,
    /// Bytes that were written, by head, in the order of completion.
    pub(super) used: Vec<(u16, u32)>,
}

/// A request: one buffer for the device to read, then one for it to write.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request {
    readable: Buffer,
    writable: Buffer,
}

impl Plug {
    pub(super) fn new(device: Arc<dyn VirtioDevice>) -> Self {
        let traits = device.traits();
        Self::with_features(device, traits.features)
    }

    /// With a driver that accepts these features.
    pub(super) fn with_features(device: Arc<dyn VirtioDevice>, features: u64) -> Self {
        let memory = Arc::new(FakeMemory::new(MEMORY));
        Self { features, ..Self::with_memory(device, memory) }
    }

    /// With queues no larger than these.
    pub(super) fn with_sizes(mut self, sizes: &[u16]) -> Self {
        for (size, limit) in self.sizes.iter_mut().zip(sizes) {
            *size = (*size).min(*limit);
        }
        self
    }

    /// With the memory of another device.
    pub(super) fn with_memory(device: Arc<dyn VirtioDevice>, memory: Arc<FakeMemory>) -> Self {
        let traits = device.traits();
        let sizes = traits.queue_sizes.into_iter().take(MAX_QUEUES);
        let sizes = sizes.map(|size| size.min(MAX_SIZE)).collect();
        Self { device, memory, sizes, features: traits.features }
    }

    /// Lets go of the device.
    pub(super) fn unplug(self) -> Arc<FakeMemory> {
        self.memory
    }

    pub(super) fn device(&self) -> &Arc<dyn VirtioDevice> {
        &self.device
    }

    /// The queues that are used, by index.
    pub(super) fn queues(&self) -> impl Iterator<Item = u16> + use<> {
        0..self.sizes.len() as u16
    }

    /// A driver with fresh rings.
    pub(super) fn driver(&self, index: u16) -> QueueDriver {
        let size = self.sizes[usize::from(index)];
        QueueDriver::new(self.memory.clone(), index, size, self.features)
    }

    /// Starts a queue.
    pub(super) fn start(&self, index: u16, driver: &QueueDriver, state: QueueState) -> Result<(), String> {
        self.device
            .start_queue(index, driver.setup(state))
            .map_err(|e| format!("queue {index} does not start: {e}"))
    }

    /// Stops a queue; where it stands.
    pub(super) fn stop(&self, index: u16) -> Result<QueueState, String> {
        let state = self.device.stop_queue(index);
        state.ok_or_else(|| format!("queue {index} was started, and stopping it says that it was not"))
    }

    /// Starts all queues, which are empty.
    pub(super) fn start_all(&self) -> Result<(), String> {
        self.queues().try_for_each(|index| self.start(index, &self.driver(index), QueueState::default()))
    }

    pub(super) fn stop_all(&self) -> Result<(), String> {
        self.queues().try_for_each(|index| self.stop(index).map(|_| ()))
    }

    /// Fills memory and makes requests available in every queue; nothing is started or kicked.
    pub(super) fn load(&self, random: &mut Random) -> Vec<Loaded> {
        let data = MEMORY - (VirtioHarness::DATA - FakeMemory::BASE) as usize;
        self.memory.write(VirtioHarness::DATA, &vec![BACKGROUND; data]);
        self.queues().map(|index| self.load_queue(index, random)).collect()
    }

    fn load_queue(&self, index: u16, random: &mut Random) -> Loaded {
        let mut driver = self.driver(index);
        let mut requests = BTreeMap::new();
        let count = REQUESTS.min(u64::from(self.sizes[usize::from(index)] / 2));
        for number in 0..count {
            let slot = VirtioHarness::DATA + (u64::from(index) * REQUESTS + number) * SLOT;
            let request = Request::random(slot, random);
            self.memory.write(request.readable.address, &content(request.readable.len, random));
            requests.insert(driver.add(&[request.readable, request.writable]), request);
        }
        Loaded { index, driver, requests, used: Vec::new() }
    }

    /// Starts queues from where they stand, and kicks.
    pub(super) fn start_loaded(&self, queues: &[Loaded], state: &[QueueState]) -> Result<(), String> {
        for (queue, state) in queues.iter().zip(state) {
            self.start(queue.index, &queue.driver, *state)?;
            queue.driver.kick();
        }
        Ok(())
    }

    /// Stops queues; where they stand.
    pub(super) fn stop_loaded(&self, queues: &[Loaded]) -> Result<Vec<QueueState>, String> {
        queues.iter().map(|queue| self.stop(queue.index)).collect()
    }

    /// What memory holds behind the rings.
    pub(super) fn data(&self, queues: &[Loaded]) -> Vec<u8> {
        let len = queues.len() as u64 * REQUESTS * SLOT;
        self.memory.read(VirtioHarness::DATA, len as usize)
    }

    /// What the device wrote for a request.
    pub(super) fn answer(&self, request: &Request, written: u32) -> Vec<u8> {
        self.memory.read(request.writable.address, written.min(request.writable.len) as usize)
    }
}

/// Readable bytes that look like the header of a request to some types of device: a small command, zero, a small number.
fn content(len: u32, random: &mut Random) -> Vec<u8> {
    let mut bytes = random.bytes(len as usize);
    let header: [u8; 16] =
        [random.below(12) as u8, 0, 0, 0, 0, 0, 0, 0, random.below(64) as u8, 0, 0, 0, 0, 0, 0, 0];
    let len = header.len().min(bytes.len());
    bytes[..len].copy_from_slice(&header[..len]);
    bytes
}

impl Request {
    fn random(slot: u64, random: &mut Random) -> Self {
        let readable = [16, 24, 64, 528, 1040][random.below(5) as usize];
        let writable = [1, 2, 13, 513, 1025][random.below(5) as usize];
        Self {
            readable: Buffer::readable(slot + READABLE_AT, readable),
            writable: Buffer::writable(slot + WRITABLE_AT, writable),
        }
    }

    /// Where it may be written, from the begin of the data.
    pub(super) fn writable(&self) -> std::ops::Range<usize> {
        let from = (self.writable.address - VirtioHarness::DATA) as usize;
        from..from + self.writable.len as usize
    }
}

impl Loaded {
    /// Takes what the device has given back.
    ///
    /// # Errors
    ///
    /// The request was not there, or more was written than there is room for.
    pub(super) fn collect(&mut self) -> Result<usize, String> {
        let before = self.used.len();
        while let Some(used) = self.driver.poll_used() {
            let index = self.index;
            let Some(request) = self.requests.get(&used.head) else {
                return Err(format!("queue {index}: request {} came back, which nobody made", used.head));
            };
            if self.used.iter().any(|(head, _)| *head == used.head) {
                return Err(format!("queue {index}: request {} came back twice", used.head));
            }
            if used.len > request.writable.len {
                return Err(format!(
                    "queue {index}: a request with {} writable bytes came back with {} written",
                    request.writable.len, used.len
                ));
            }
            self.used.push((used.head, used.len));
        }
        Ok(self.used.len() - before)
    }
}

/// Takes what comes back until nothing more does, or until `enough`.
pub(super) fn collect_until(
    queues: &mut [Loaded],
    limit: Duration,
    enough: impl Fn(&[Loaded]) -> bool,
) -> Result<(), String> {
    let mut last = Instant::now();
    while last.elapsed() < limit && !enough(queues) {
        let mut got = 0;
        for queue in queues.iter_mut() {
            got += queue.collect()?;
        }
        if got > 0 {
            last = Instant::now();
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// Takes what comes back until the device is idle.
pub(super) fn collect_all(queues: &mut [Loaded]) -> Result<(), String> {
    collect_until(queues, IDLE, |queues| queues.iter().all(|queue| queue.used.len() == queue.requests.len()))
}

/// Checks where stopped queues stand: what was taken has come back or was put back.
pub(super) fn check_states(queues: &[Loaded], states: &[QueueState]) -> Result<(), String> {
    for (queue, state) in queues.iter().zip(states) {
        let (index, used) = (queue.index, queue.used.len());
        if usize::from(state.next_used) != used {
            return Err(format!(
                "queue {index}: {used} requests came back, but it says that it stands at {} of the used ring",
                state.next_used
            ));
        }
        if state.next_avail != state.next_used {
            let taken = state.next_avail.wrapping_sub(state.next_used);
            return Err(format!(
                "queue {index}: it was stopped with {taken} requests neither done nor put back"
            ));
        }
    }
    Ok(())
}
