//! The control queue (virtio 1.2, 5.1.6.5): receive modes, addresses, number of pairs, offloads.
#![forbid(unsafe_code)]

use std::sync::Arc;

use gvmm_plugin_api::queue::{Chain, QueueError, VirtQueue, total_len};
use gvmm_plugin_api::worker::QueueHandler;

use crate::backend::tap::Tap;
use crate::card::Card;
use crate::config::{
    F_CTRL_GUEST_OFFLOADS, F_CTRL_MAC_ADDR, F_CTRL_RX, F_CTRL_RX_EXTRA, F_MQ, GUEST_OFFLOADS,
};
use crate::filter::{TABLE_LEN, Table};
use crate::mac::Mac;

/// Classes and commands (virtio 1.2, 5.1.6.5).
pub(crate) const RX: u8 = 0;
const RX_PROMISC: u8 = 0;
const RX_ALLMULTI: u8 = 1;
const RX_ALLUNI: u8 = 2;
const RX_NOMULTI: u8 = 3;
const RX_NOUNI: u8 = 4;
const RX_NOBCAST: u8 = 5;
pub(crate) const MAC: u8 = 1;
pub(crate) const MAC_TABLE_SET: u8 = 0;
pub(crate) const MAC_ADDR_SET: u8 = 1;
pub(crate) const MQ: u8 = 4;
pub(crate) const MQ_VQ_PAIRS_SET: u8 = 0;
pub(crate) const GUEST_OFFLOADS_CLASS: u8 = 5;
pub(crate) const GUEST_OFFLOADS_SET: u8 = 0;

/// Answers.
pub(crate) const OK: u8 = 0;
pub(crate) const ERR: u8 = 1;

/// Bytes of class and command before the data of a request.
const HEADER: u64 = 2;
/// Bytes of an address.
const ADDRESS: u64 = 6;
/// Requests that are served before the worker may look at anything else.
const BATCH: usize = 32;

/// Handler of the control queue.
pub(crate) struct Control {
    pub(crate) card: Arc<Card>,
    pub(crate) tap: Option<Arc<Tap>>,
    /// Most pairs of queues.
    pub(crate) pairs: u16,
    /// Features that the driver accepted.
    pub(crate) features: u64,
}

/// A request whose data is read piece by piece.
struct Request<'a> {
    queue: &'a VirtQueue,
    chain: &'a Chain,
    class: u8,
    command: u8,
}

impl<'a> Request<'a> {
    fn new(queue: &'a VirtQueue, chain: &'a Chain) -> Result<Option<Self>, QueueError> {
        let mut header = [0; HEADER as usize];
        if !chain.read(queue.memory(), 0, &mut header)? {
            return Ok(None);
        }
        let [class, command] = header;
        Ok(Some(Self { queue, chain, class, command }))
    }

    /// Bytes of data.
    fn len(&self) -> u64 {
        total_len(self.chain.readable()).saturating_sub(HEADER)
    }

    /// Data from an offset on; `None` when there is not so much.
    fn data<const N: usize>(&self, offset: u64) -> Result<Option<[u8; N]>, QueueError> {
        let mut data = [0; N];
        let whole = self.chain.read(self.queue.memory(), HEADER + offset, &mut data)?;
        Ok(whole.then_some(data))
    }

    /// A table of addresses at an offset, and the offset behind it.
    fn table(&self, offset: u64) -> Result<Option<(Table, u64)>, QueueError> {
        let Some(count) = self.data(offset)?.map(u32::from_le_bytes) else { return Ok(None) };
        let (start, end) = (offset + 4, offset + 4 + ADDRESS * u64::from(count));
        if end > self.len() {
            return Ok(None);
        }
        // Of a table that is too long, what is in it does not matter.
        let mut addresses = Vec::new();
        for index in 0..u64::from(count).min(TABLE_LEN as u64 + 1) {
            let Some(address) = self.data(start + ADDRESS * index)? else { return Ok(None) };
            addresses.push(Mac(address));
        }
        Ok(Some((Table::new(addresses), end)))
    }
}

impl Control {
    fn accepted(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    /// Does what a request asks for; whether it could be done.
    fn execute(&self, request: &Request<'_>) -> Result<bool, QueueError> {
        match (request.class, request.command) {
            (RX, mode) => self.set_mode(mode, request),
            (MAC, MAC_TABLE_SET) if self.accepted(F_CTRL_RX) => self.set_tables(request),
            (MAC, MAC_ADDR_SET) if self.accepted(F_CTRL_MAC_ADDR) => {
                let address = request.data(0)?.map(Mac).filter(|mac| !mac.is_group());
                Ok(address.map(|mac| self.card.filter().own = mac).is_some())
            }
            (MQ, MQ_VQ_PAIRS_SET) if self.accepted(F_MQ) => {
                let count = request.data(0)?.map(u16::from_le_bytes);
                let count = count.filter(|count| (1..=self.pairs).contains(count));
                if let (Some(count), Some(tap)) = (count, &self.tap) {
                    tap.attach(count);
                }
                Ok(count.is_some())
            }
            (GUEST_OFFLOADS_CLASS, GUEST_OFFLOADS_SET) if self.accepted(F_CTRL_GUEST_OFFLOADS) => {
                let offloads = request.data(0)?.map(u64::from_le_bytes);
                let possible = GUEST_OFFLOADS & self.features;
                let offloads = offloads.filter(|offloads| offloads & !possible == 0);
                if let (Some(offloads), Some(tap)) = (offloads, &self.tap) {
                    tap.set_offloads(offloads);
                }
                Ok(offloads.is_some())
            }
            _ => Ok(false),
        }
    }

    fn set_mode(&self, mode: u8, request: &Request<'_>) -> Result<bool, QueueError> {
        let feature = if mode <= RX_ALLMULTI { F_CTRL_RX } else { F_CTRL_RX_EXTRA };
        let Some([on]) = request.data(0)? else { return Ok(false) };
        let mut filter = self.card.filter();
        let modes = &mut filter.modes;
        let flag = match mode {
            RX_PROMISC => &mut modes.promiscuous,
            RX_ALLMULTI => &mut modes.all_multicast,
            RX_ALLUNI => &mut modes.all_unicast,
            RX_NOMULTI => &mut modes.no_multicast,
            RX_NOUNI => &mut modes.no_unicast,
            RX_NOBCAST => &mut modes.no_broadcast,
            _ => return Ok(false),
        };
        if self.accepted(feature) {
            *flag = on != 0;
        }
        Ok(self.accepted(feature))
    }

    fn set_tables(&self, request: &Request<'_>) -> Result<bool, QueueError> {
        let Some((unicast, behind)) = request.table(0)? else { return Ok(false) };
        let Some((multicast, _)) = request.table(behind)? else { return Ok(false) };
        let mut filter = self.card.filter();
        filter.unicast = unicast;
        filter.multicast = multicast;
        Ok(true)
    }
}

impl QueueHandler for Control {
    fn process(&mut self, queue: &mut VirtQueue) -> Result<(), QueueError> {
        for _ in 0..BATCH {
            let Some(chain) = queue.pop()? else { break };
            let done = match Request::new(queue, &chain)? {
                Some(request) => self.execute(&request)?,
                None => false,
            };
            let answer = if done { OK } else { ERR };
            let written = u32::from(chain.write(queue.memory(), 0, &[answer])?);
            queue.push(chain, written)?;
        }
        Ok(())
    }
}
