use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const SIZE: u16 = 8;

/// A region that is ordinary memory of the test, never freed.
fn region() -> InflightRegion {
    let words = Box::leak(vec![0_u64; region_size(SIZE) / 8].into_boxed_slice());
    // SAFETY: the memory is never freed.
    unsafe { InflightRegion::new(words.as_mut_ptr().expose_provenance(), words.len() * 8) }
}

fn open(region: InflightRegion, used_index: u16) -> (Tracker, Option<Recovered>) {
    Tracker::open(region, SIZE, used_index).unwrap()
}

fn heads(recovered: Option<Recovered>) -> Vec<u16> {
    recovered.unwrap().heads
}

#[test]
fn a_fresh_region_recovers_nothing() {
    let region = region();
    assert_eq!(open(region, 7).1, None);
    assert_eq!(open(region, 7).1, Some(Recovered { heads: vec![], next_avail: 7 }));
}

#[test]
fn requests_in_flight_come_back_in_the_order_in_which_they_were_taken() {
    let region = region();
    let (mut tracker, _) = open(region, 65535);
    for head in [5, 1, 7, 2] {
        tracker.take(head);
    }
    tracker.completing(1);
    tracker.completed(1, 0);
    tracker.put_back(2);
    let (mut tracker, recovered) = open(region, 0);
    assert_eq!(recovered, Some(Recovered { heads: vec![5, 7], next_avail: 2 }));
    tracker.take(1);
    assert_eq!(heads(open(region, 0).1), [5, 7, 1]);
}

#[test]
fn a_region_of_other_rings_is_cleared() {
    let region = region();
    let (mut tracker, _) = open(region, 500);
    tracker.take(3);
    assert_eq!(open(region, 0).1, Some(Recovered { heads: vec![], next_avail: 0 }));
}

#[test]
fn a_region_that_does_not_fit_is_refused() {
    let good = region();
    // SAFETY: a part of the same memory.
    let short = unsafe { InflightRegion::new(good.host_address(), region_size(SIZE) - 1) };
    // SAFETY: as above; refused before it is touched.
    let odd = unsafe { InflightRegion::new(good.host_address() + 4, region_size(SIZE)) };
    assert!(matches!(Tracker::open(short, SIZE, 0), Err(InflightError::Shape { .. })));
    assert!(matches!(Tracker::open(odd, SIZE, 0), Err(InflightError::Shape { .. })));
    open(good, 0);
    let refused = Tracker::open(good, SIZE / 2, 0).unwrap_err();
    assert_eq!(refused, InflightError::Foreign { version: 1, size: SIZE, queue_size: SIZE / 2 });
}

/// What a back end was doing when it was killed.
#[derive(Debug, Clone, Copy)]
enum Death {
    BeforeTake,
    AfterTake,
    BeforeUsed,
    AfterUsed,
    AfterCompletion,
}

fn death() -> impl Strategy<Value = Death> {
    prop_oneof![
        Just(Death::BeforeTake),
        Just(Death::AfterTake),
        Just(Death::BeforeUsed),
        Just(Death::AfterUsed),
        Just(Death::AfterCompletion)
    ]
}

proptest! {
    /// Whatever the order of completions and the moment of each death: what the driver has not got back is in flight or
    /// yet to be taken, and nothing else is.
    #[test]
    fn no_death_loses_or_repeats_a_request(lives in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..40), death()), 1..12)) {
        let region = region();
        // The driver's view: entries of the available ring, what came back, and which heads are free.
        let (mut available, mut used_index, mut outstanding) = (Vec::new(), 0_u16, BTreeSet::new());
        for (steps, death) in lives {
            let (mut tracker, recovered) = open(region, used_index);
            let recovered = recovered.unwrap_or(Recovered { heads: vec![], next_avail: 0 });
            let mut taken = recovered.heads;
            let mut next_avail = usize::from(recovered.next_avail);
            let pending: BTreeSet<u16> = available[next_avail..].iter().copied().chain(taken.iter().copied()).collect();
            prop_assert_eq!(&pending, &outstanding);
            prop_assert_eq!(pending.len(), available.len() - next_avail + taken.len());
            for step in steps {
                let choice = usize::from(step);
                if step % 3 == 0 {
                    let free = (0..SIZE).filter(|head| !outstanding.contains(head)).nth(choice % usize::from(SIZE));
                    if let Some(head) = free {
                        outstanding.insert(head);
                        available.push(head);
                    }
                } else if step % 3 == 1 && next_avail < available.len() {
                    taken.push(available[next_avail]);
                    tracker.take(available[next_avail]);
                    next_avail += 1;
                } else if !taken.is_empty() {
                    let head = taken.remove(choice % taken.len());
                    tracker.completing(head);
                    used_index += 1;
                    outstanding.remove(&head);
                    tracker.completed(head, used_index);
                }
            }
            match death {
                Death::AfterTake if next_avail < available.len() => tracker.take(available[next_avail]),
                Death::BeforeUsed if !taken.is_empty() => tracker.completing(taken[0]),
                Death::AfterUsed | Death::AfterCompletion if !taken.is_empty() => {
                    tracker.completing(taken[0]);
                    used_index += 1;
                    outstanding.remove(&taken[0]);
                    if matches!(death, Death::AfterCompletion) {
                        tracker.put_back(taken[0]);
                    }
                }
                _ => {}
            }
        }
    }

    #[test]
    fn garbage_is_bounded(words in prop::collection::vec(any::<u64>(), region_size(SIZE) / 8), used_index: u16) {
        let region = region();
        for (i, word) in words.into_iter().enumerate() {
            let at = std::ptr::with_exposed_provenance_mut::<u64>(region.host_address() + 8 * i);
            // SAFETY: within the region, which is the test's own.
            unsafe { at.write(word) };
        }
        // A header that is accepted, in front of garbage.
        // SAFETY: as above.
        unsafe { std::ptr::with_exposed_provenance_mut::<u16>(region.host_address() + VERSION_AT).write(1) };
        // SAFETY: as above.
        unsafe { std::ptr::with_exposed_provenance_mut::<u16>(region.host_address() + SIZE_AT).write(SIZE) };
        let heads = heads(open(region, used_index).1);
        prop_assert!(heads.len() <= usize::from(SIZE) && heads.iter().all(|head| *head < SIZE));
    }
}
