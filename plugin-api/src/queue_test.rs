use std::sync::Arc;

use super::*;
use crate::inflight::region_size;
use crate::testing::{Buffer, FakeMemory, QueueDriver};
use crate::virtio::COMMON_FEATURES;

const SIZE: u16 = 8;
const DATA: u64 = FakeMemory::BASE + (1 << 20);

/// A driver, and a region that outlives the queues of its device.
struct Machine {
    driver: QueueDriver,
    region: InflightRegion,
}

impl Machine {
    fn new() -> Self {
        let memory = Arc::new(FakeMemory::new(4 << 20));
        let words = Box::leak(vec![0_u64; region_size(SIZE) / 8].into_boxed_slice());
        // SAFETY: the memory is never freed.
        let region = unsafe { InflightRegion::new(words.as_mut_ptr().expose_provenance(), words.len() * 8) };
        Self { driver: QueueDriver::new(memory, 0, SIZE, COMMON_FEATURES), region }
    }

    /// The queue of a device that has just been started; one before it is simply gone.
    fn start(&self) -> VirtQueue {
        let setup = self.driver.setup(QueueState::default());
        VirtQueue::new(QueueSetup { inflight: Some(self.region), ..setup }).unwrap()
    }

    fn request(&mut self, i: u64) -> u16 {
        self.driver.add(&[Buffer::readable(DATA + 16 * i, 16), Buffer::writable(DATA + 4096 + 16 * i, 16)])
    }
}

fn pop(queue: &mut VirtQueue) -> Chain {
    queue.pop().unwrap().unwrap()
}

#[test]
fn what_a_dead_device_had_taken_is_taken_once_more_in_order_and_then_the_rest() {
    let mut machine = Machine::new();
    let heads: Vec<u16> = (0..4).map(|i| machine.request(i)).collect();
    let mut queue = machine.start();
    let chains: Vec<Chain> = (0..3).map(|_| pop(&mut queue)).collect();
    let [first, second, third] = <[Chain; 3]>::try_from(chains).unwrap();
    let third_buffers = third.readable().to_vec();
    queue.push(second, 16).unwrap();
    // The device dies with the first and the third in flight and the fourth not taken.
    drop((queue, first, third));

    let mut queue = machine.start();
    assert!(machine.driver.interrupted(), "the second was completed without an interrupt");
    assert_eq!(machine.driver.poll_used().map(|used| used.head), Some(heads[1]));
    let chains: Vec<Chain> = (0..3).map(|_| pop(&mut queue)).collect();
    assert_eq!(chains.iter().map(Chain::head).collect::<Vec<_>>(), [heads[0], heads[2], heads[3]]);
    assert_eq!(chains[1].readable(), third_buffers);
    assert!(queue.pop().unwrap().is_none());
    for chain in chains {
        queue.push(chain, 0).unwrap();
    }
    let used: Vec<u16> = std::iter::from_fn(|| machine.driver.poll_used()).map(|used| used.head).collect();
    assert_eq!(used, [heads[0], heads[2], heads[3]]);
    assert_eq!(queue.state(), QueueState { next_avail: 4, next_used: 4 });
}

#[test]
fn what_was_put_back_is_not_in_flight() {
    let mut machine = Machine::new();
    let heads: Vec<u16> = (0..2).map(|i| machine.request(i)).collect();
    let mut queue = machine.start();
    let (first, second) = (pop(&mut queue), pop(&mut queue));
    queue.unpop(second);
    drop((queue, first));

    let mut queue = machine.start();
    let (first, second) = (pop(&mut queue), pop(&mut queue));
    assert_eq!((first.head(), second.head()), (heads[0], heads[1]));
    // A request that was in flight goes back to where it came from.
    queue.unpop(first);
    assert_eq!(queue.state(), QueueState { next_avail: 2, next_used: 0 });
    assert_eq!(pop(&mut queue).head(), heads[0]);
    assert!(queue.pop().unwrap().is_none());
}

#[test]
fn requests_pushed_together_appear_together_and_raise_one_interrupt() {
    let mut machine = Machine::new();
    let mut queue = machine.start();
    for round in 0..5_u64 {
        let heads: Vec<u16> = (0..3).map(|i| machine.request(i)).collect();
        let mut chains: Vec<_> = (1..=3).map(|len| (pop(&mut queue), len)).collect();
        queue.push_together(&mut chains).unwrap();
        assert!(chains.is_empty());
        queue.signal().unwrap();
        assert!(machine.driver.interrupted(), "round {round}");
        queue.signal().unwrap();
        assert!(!machine.driver.interrupted(), "nothing is new");
        let used: Vec<_> = std::iter::from_fn(|| machine.driver.poll_used()).collect();
        let used: Vec<_> = used.iter().map(|used| (used.head, used.len)).collect();
        assert_eq!(used, [(heads[0], 1), (heads[1], 2), (heads[2], 3)]);
    }
    assert_eq!(queue.state(), QueueState { next_avail: 15, next_used: 15 });
    drop(queue);
    assert!(machine.start().pop().unwrap().is_none(), "none is in flight");
}

#[test]
fn a_region_of_another_queue_is_refused() {
    let machine = Machine::new();
    drop(machine.start());
    let other = QueueDriver::new(Arc::new(FakeMemory::new(4 << 20)), 0, SIZE / 2, COMMON_FEATURES);
    let setup = QueueSetup { inflight: Some(machine.region), ..other.setup(QueueState::default()) };
    let error = VirtQueue::new(setup).unwrap_err().to_string();
    assert_eq!(error, "the in-flight region is of version 1 for 8 entries, the queue has 4");
}

#[test]
fn chains_that_loop_or_leave_their_table_are_malformed() {
    const NEXT: u16 = 1;
    const INDIRECT: u16 = 4;
    let malformed = |descriptor: &dyn Fn(&mut QueueDriver)| {
        let mut machine = Machine::new();
        descriptor(&mut machine.driver);
        machine.driver.offer(0);
        matches!(machine.start().pop(), Err(QueueError::Chain { head: 0 }))
    };
    assert!(malformed(&|driver| driver.descriptor(0, DATA, 16, NEXT, 0)));
    assert!(malformed(&|driver| driver.descriptor(0, DATA, 16, NEXT, SIZE)));
    assert!(malformed(&|driver| driver.descriptor(0, u64::MAX - 7, 16, INDIRECT, 0)));
    for len in [0, 15, 17] {
        assert!(malformed(&|driver| driver.descriptor(0, DATA, len, INDIRECT, 0)));
    }
    assert!(malformed(&|driver| driver.descriptor(0, DATA, 16, INDIRECT | NEXT, 1)));
    assert!(!malformed(&|driver| driver.descriptor(0, DATA, 16, 0, 0)));
}
