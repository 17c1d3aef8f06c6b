//! One front end's session with the device: what its requests do.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use gvmm_plugin_api::interrupt::{Event, Interrupt};
use gvmm_plugin_api::memory::GuestMemory;
use gvmm_plugin_api::virtio::{
    COMMON_FEATURES, F_VERSION_1, QueueSetup, QueueState, VirtioDevice, VirtioTraits,
};

use super::host::BackendHost;
use super::inflight::{Fresh, InflightMap};
use super::memory::{GuestMap, MAX_SLOTS};
use super::ring::Ring;
use crate::protocol::features::{self, status};
use crate::protocol::payload::{
    Config, Inflight, MAX_CONFIG, MemoryTable, Payload, SingleRegion, VringAddress, VringEvent, VringState,
};
use crate::protocol::{Channel, ChannelError, Deadline, Message, flag, request};

/// Most bytes of configuration space that are shown. A front end may know more fields than the device has; they read as
/// zero.
const CONFIG_SPACE: usize = 256;

/// Most entries of a queue of any device (virtio 1.2, 2.7).
const MAX_QUEUE_SIZE: u16 = 1 << 15;

/// Why a request was not fulfilled.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// It makes no sense, or cannot be done; the session can go on if the front end is told.
    #[error("{0}")]
    Refused(String),
    /// The connection is of no more use.
    #[error(transparent)]
    Channel(#[from] ChannelError),
}

impl From<String> for Fault {
    fn from(why: String) -> Self {
        Self::Refused(why)
    }
}

/// What a request is answered with.
enum Answer {
    /// Whether it was done, if the front end asks.
    Done,
    /// A payload of its own.
    Payload(Vec<u8>),
    /// A payload and a descriptor.
    WithFd(Vec<u8>, Fresh),
}

impl Answer {
    fn of(payload: &impl Payload) -> Self {
        Self::Payload(payload.encode())
    }
}

/// The state of a session. The device serves no queue before and after it.
pub(super) struct Session {
    device: Arc<dyn VirtioDevice>,
    traits: VirtioTraits,
    host: Arc<BackendHost>,
    memory: GuestMap,
    inflight: Option<InflightMap>,
    rings: Vec<Ring>,
    driver_features: u64,
    protocol_features: u64,
    status: u8,
}

impl Session {
    pub(super) fn new(device: Arc<dyn VirtioDevice>, host: Arc<BackendHost>) -> Self {
        let traits = device.traits();
        let rings = traits.queue_sizes.iter().map(|_| Ring::default()).collect();
        Self {
            device,
            traits,
            host,
            memory: GuestMap::default(),
            inflight: None,
            rings,
            driver_features: 0,
            protocol_features: 0,
            status: 0,
        }
    }

    /// Does what a message asks for and answers it. After an error the connection is to be closed.
    pub(super) fn handle(
        &mut self,
        message: Message,
        channel: &Channel,
        deadline: Deadline,
    ) -> Result<(), Fault> {
        let code = message.code;
        let needs_reply = message.needs_reply() && self.protocol_features & features::REPLY_ACK != 0;
        tracing::trace!("{} with {} bytes", request::name(code), message.body.len());
        let answer = self.perform(message);
        let reply =
            |body: &[u8], fds: &[BorrowedFd<'_>]| channel.send(code, flag::REPLY, body, fds, deadline);
        match answer {
            Ok(Answer::Payload(body)) => reply(&body, &[])?,
            Ok(Answer::WithFd(body, fresh)) => reply(&body, &[fresh.as_fd()])?,
            Ok(Answer::Done) if needs_reply => reply(&0_u64.encode(), &[])?,
            Ok(Answer::Done) => {}
            Err(Fault::Refused(why)) if needs_reply => {
                tracing::warn!("{} refused: {why}", request::name(code));
                reply(&1_u64.encode(), &[])?;
            }
            Err(Fault::Refused(why)) => {
                return Err(Fault::Refused(format!("{}: {why}", request::name(code))));
            }
            Err(fault) => return Err(fault),
        }
        Ok(())
    }

    fn perform(&mut self, message: Message) -> Result<Answer, Fault> {
        if message.is_reply() {
            return Err(Fault::Refused("a reply that nobody asked for".to_owned()));
        }
        match message.code {
            request::GET_FEATURES => return Ok(Answer::of(&self.offered())),
            request::SET_FEATURES => self.set_features(message.payload()?)?,
            request::GET_PROTOCOL_FEATURES => return Ok(Answer::of(&features::SUPPORTED)),
            request::SET_PROTOCOL_FEATURES => self.set_protocol_features(message.payload()?)?,
            // The session belongs to whoever is connected; the second is of old and means nothing today.
            request::SET_OWNER | request::RESET_OWNER => message.payload()?,
            request::GET_QUEUE_NUM => return Ok(Answer::of(&(self.rings.len() as u64))),
            request::SET_MEM_TABLE => {
                let table: MemoryTable = message.payload()?;
                self.change_memory(|map| GuestMap::of_table(&table.0, message.fds).map(|new| *map = new))?;
            }
            request::GET_MAX_MEM_SLOTS => return Ok(Answer::of(&(MAX_SLOTS as u64))),
            request::ADD_MEM_REG => {
                let SingleRegion(region) = message.payload()?;
                let fd = single(message.fds)?.ok_or("it came without a descriptor".to_owned())?;
                self.change_memory(|map| map.add(region, fd))?;
            }
            request::REM_MEM_REG => {
                let SingleRegion(region) = message.payload()?;
                self.change_memory(|map| map.remove(&region))?;
            }
            request::GET_CONFIG => return self.get_config(message.payload()?),
            request::SET_CONFIG => self.set_config(&message.payload()?)?,
            request::SET_BACKEND_REQ_FD => {
                let fd = single(message.fds)?.ok_or("it came without a descriptor".to_owned())?;
                self.host.set_requests(Channel::from(fd));
            }
            request::GET_INFLIGHT_FD => return self.get_inflight(message.payload()?),
            request::SET_INFLIGHT_FD => {
                let description = message.payload()?;
                let fd = single(message.fds)?.ok_or("it came without a descriptor".to_owned())?;
                self.set_inflight(description, fd)?;
            }
            request::RESET_DEVICE => {
                message.payload::<()>()?;
                self.reset();
            }
            request::SET_STATUS => self.set_status(message.payload()?)?,
            request::GET_STATUS => {
                let needs_reset = if self.host.has_failed() { status::NEEDS_RESET } else { 0 };
                return Ok(Answer::of(&u64::from(self.status | needs_reset)));
            }
            _ => return self.perform_on_ring(message),
        }
        Ok(Answer::Done)
    }

    fn perform_on_ring(&mut self, message: Message) -> Result<Answer, Fault> {
        match message.code {
            request::SET_VRING_NUM => {
                let VringState { index, num } = message.payload()?;
                let ring = self.ring(index)?;
                let max = self.traits.queue_sizes[ring];
                let size = u16::try_from(num).ok().filter(|size| size.is_power_of_two() && *size <= max);
                let size = size
                    .ok_or_else(|| format!("queue {ring} cannot have {num} entries, up to {max} can be"))?;
                self.change_ring(ring, |ring| ring.size = size)?;
            }
            request::SET_VRING_ADDR => {
                // Sent again to switch the log on or off; there is no log here.
                let address = VringAddress { flags: 0, log: 0, ..message.payload()? };
                let ring = self.ring(address.index)?;
                if self.rings[ring].address != Some(address) {
                    self.change_ring(ring, |ring| ring.address = Some(address))?;
                }
            }
            request::SET_VRING_BASE => {
                let VringState { index, num } = message.payload()?;
                let ring = self.ring(index)?;
                let base =
                    u16::try_from(num).map_err(|_| format!("base {num} of queue {ring} is no ring index"))?;
                self.change_ring(ring, |ring| ring.base = base)?;
            }
            request::GET_VRING_BASE => {
                let VringState { index, .. } = message.payload()?;
                let ring = self.ring(index)?;
                self.stop(ring);
                let ring = &mut self.rings[ring];
                ring.kick = None;
                return Ok(Answer::of(&VringState { index, num: ring.base.into() }));
            }
            request::SET_VRING_KICK => {
                let (ring, kick) = self.event(message)?;
                let kick =
                    kick.ok_or_else(|| format!("queue {ring} is to be polled, which is not supported"))?;
                self.change_ring(ring, |ring| ring.kick = Some(kick))?;
            }
            request::SET_VRING_CALL => {
                let (ring, call) = self.event(message)?;
                self.change_ring(ring, |ring| ring.call = call)?;
            }
            request::SET_VRING_ERR => {
                let (ring, error) = self.event(message)?;
                self.host.set_error(ring, error);
            }
            request::SET_VRING_ENABLE => {
                let VringState { index, num } = message.payload()?;
                let ring = self.ring(index)?;
                if num > 1 {
                    return Err(Fault::Refused(format!("queue {ring} is to be enabled by {num}")));
                }
                if self.rings[ring].enabled != (num == 1) {
                    self.change_ring(ring, |ring| ring.enabled = num == 1)?;
                }
            }
            other => return Err(Fault::Refused(format!("request {other} is not supported"))),
        }
        Ok(Answer::Done)
    }

    fn offered(&self) -> u64 {
        self.traits.features | F_VERSION_1 | features::PROTOCOL_FEATURES
    }

    fn set_features(&mut self, driver_features: u64) -> Result<(), String> {
        let unknown = driver_features & !self.offered();
        if unknown != 0 {
            return Err(format!("features {unknown:#x} were not offered"));
        }
        if self.driver_features != driver_features {
            self.stop_all();
            self.driver_features = driver_features;
        }
        self.start_ready()
    }

    fn set_protocol_features(&mut self, wanted: u64) -> Result<(), String> {
        let unknown = wanted & !features::SUPPORTED;
        if unknown != 0 {
            return Err(format!("protocol features {unknown:#x} were not offered"));
        }
        self.protocol_features = wanted;
        Ok(())
    }

    fn get_config(&self, asked: Config) -> Result<Answer, Fault> {
        let len = asked.content.len();
        let end = usize::try_from(asked.offset).ok().and_then(|offset| offset.checked_add(len));
        let Some(end) = end.filter(|end| *end <= CONFIG_SPACE.max(self.config_size()).min(MAX_CONFIG)) else {
            // An empty content says that there is no such configuration.
            return Ok(Answer::of(&Config { content: Vec::new(), ..asked }));
        };
        let mut space = vec![0; end.min(self.config_size())];
        if !space.is_empty() {
            self.device.read_config(0, &mut space);
        }
        space.resize(end, 0);
        Ok(Answer::of(&Config { content: space.split_off(end - len), ..asked }))
    }

    fn set_config(&self, written: &Config) -> Result<(), String> {
        let end = usize::try_from(written.offset).ok().and_then(|o| o.checked_add(written.content.len()));
        if end.is_none_or(|end| end > self.config_size()) || written.content.is_empty() {
            return Err(format!("the device has {} bytes of configuration", self.config_size()));
        }
        self.device.write_config(written.offset, &written.content);
        Ok(())
    }

    fn config_size(&self) -> usize {
        usize::try_from(self.traits.config_size).unwrap_or(usize::MAX)
    }

    fn get_inflight(&self, asked: Inflight) -> Result<Answer, Fault> {
        let queues = usize::from(asked.queues);
        // Front ends ask with the size that they allow their driver, and there is no way to tell them no. Which sizes the
        // device has, SET_VRING_NUM says.
        if queues == 0 || queues > self.rings.len() || !(1..=MAX_QUEUE_SIZE).contains(&asked.queue_size) {
            return Err(Fault::Refused(format!(
                "the device has {} queues of up to {MAX_QUEUE_SIZE} entries, not {queues} of {}",
                self.rings.len(),
                asked.queue_size
            )));
        }
        let fresh = Fresh::new(asked.queues, asked.queue_size)?;
        Ok(Answer::WithFd(fresh.description.encode(), fresh))
    }

    fn set_inflight(&mut self, description: Inflight, fd: OwnedFd) -> Result<(), String> {
        let map = InflightMap::new(description, fd)?;
        self.stop_all();
        self.inflight = Some(map);
        self.start_ready()
    }

    fn set_status(&mut self, value: u64) -> Result<(), String> {
        let value = u8::try_from(value).map_err(|_| format!("a device status of {value:#x}"))?;
        if value == 0 {
            self.reset();
        }
        self.status = value & !status::NEEDS_RESET;
        Ok(())
    }

    /// Brings the device and its rings back to the state after power-on; memory stays mapped.
    fn reset(&mut self) {
        self.stop_all();
        self.rings.fill_with(Ring::default);
        self.inflight = None;
        self.status = 0;
        self.device.reset();
        self.host.forgive();
    }

    fn change_memory(
        &mut self,
        change: impl FnOnce(&mut GuestMap) -> Result<(), String>,
    ) -> Result<(), String> {
        self.stop_all();
        change(&mut self.memory)?;
        self.start_ready()
    }

    /// Changes a ring; one that is running is stopped for it and goes on where it stood.
    fn change_ring(&mut self, index: usize, change: impl FnOnce(&mut Ring)) -> Result<(), String> {
        self.stop(index);
        change(&mut self.rings[index]);
        self.start_if_ready(index)
    }

    fn ring(&self, index: u32) -> Result<usize, String> {
        let rings = self.rings.len();
        let known = usize::try_from(index).ok().filter(|index| *index < rings);
        known.ok_or_else(|| format!("the device has no queue {index}, it has {rings}"))
    }

    fn event(&self, message: Message) -> Result<(usize, Option<Event>), Fault> {
        let VringEvent { index, has_fd } = message.payload()?;
        let ring = self.ring(index.into())?;
        match (single(message.fds)?, has_fd) {
            (Some(fd), true) => Ok((ring, Some(Event::from(fd)))),
            (None, false) => Ok((ring, None)),
            _ => Err(Fault::Refused("its descriptor and its flag contradict each other".to_owned())),
        }
    }

    fn start_ready(&mut self) -> Result<(), String> {
        (0..self.rings.len()).try_for_each(|index| self.start_if_ready(index))
    }

    /// Starts a ring of which everything is known, unless it runs.
    fn start_if_ready(&mut self, index: usize) -> Result<(), String> {
        // Without protocol features there is no request to enable a ring: it is from the start.
        let enabled = self.rings[index].enabled || self.driver_features & features::PROTOCOL_FEATURES == 0;
        let ring = &self.rings[index];
        if ring.running || !enabled || ring.size == 0 || ring.kick.is_none() || self.memory.is_empty() {
            return Ok(());
        }
        let Some(address) = ring.address else { return Ok(()) };
        // Fewer than 65,536 rings.
        let number = index as u16;
        let setup = self.setup(index, address)?;
        self.device.start_queue(number, setup)?;
        self.rings[index].running = true;
        tracing::debug!("queue {index} runs from {}", self.rings[index].base);
        Ok(())
    }

    fn setup(&self, index: usize, address: VringAddress) -> Result<QueueSetup, String> {
        let ring = &self.rings[index];
        let guest = |user: u64| {
            let address = self.memory.guest_address(user);
            address.ok_or_else(|| format!("queue {index}: its ring at {user:#x} is not in shared memory"))
        };
        let (descriptor_table, available_ring, used_ring) =
            (guest(address.descriptor)?, guest(address.available)?, guest(address.used)?);
        let memory = self.memory.regions();
        let mut used_index = [0; 2];
        let view = GuestMemory::new(&memory).map_err(|e| e.to_string())?;
        let used_index_at = used_ring.checked_add(2).ok_or("a used ring at the end of all addresses")?;
        view.read(used_index_at, &mut used_index).map_err(|e| format!("queue {index}: used ring: {e}"))?;
        let copy = |event: &Option<Event>| match event {
            Some(event) => event.try_clone(),
            None => Event::new(),
        };
        let failed = |e: std::io::Error| format!("queue {index}: cannot copy its eventfds: {e}");
        let call = Interrupt::new(copy(&ring.call).map_err(failed)?);
        // What was completed by a back end before this one may not have been announced.
        call.raise();
        Ok(QueueSetup {
            size: ring.size,
            descriptor_table,
            available_ring,
            used_ring,
            state: QueueState { next_avail: ring.base, next_used: u16::from_le_bytes(used_index) },
            kick: copy(&ring.kick).map_err(failed)?,
            call,
            memory,
            features: self.driver_features & (self.traits.features | COMMON_FEATURES),
            inflight: self.inflight.as_ref().and_then(|map| map.region(index)),
        })
    }

    /// Stops a ring that runs; it keeps where it stands.
    fn stop(&mut self, index: usize) {
        let ring = &mut self.rings[index];
        if std::mem::take(&mut ring.running) {
            // Fewer than 65,536 rings.
            if let Some(state) = self.device.stop_queue(index as u16) {
                ring.base = state.next_avail;
            }
            tracing::debug!("queue {index} stands at {}", ring.base);
        }
    }

    fn stop_all(&mut self) {
        (0..self.rings.len()).for_each(|index| self.stop(index));
    }
}

impl Drop for Session {
    /// The front end is gone: what was taken is completed, and the device is as after power-on.
    fn drop(&mut self) {
        self.host.disconnect();
        self.reset();
    }
}

/// The descriptor of a message that may have one.
fn single(fds: Vec<OwnedFd>) -> Result<Option<OwnedFd>, String> {
    if fds.len() > 1 {
        return Err(format!("it came with {} descriptors", fds.len()));
    }
    Ok(fds.into_iter().next())
}
