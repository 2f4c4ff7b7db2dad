//! Which receivers are polled in a turn.
//!
//! A poll of an idle port costs a cache miss, so a thousand of them would starve the two that are busy. Receivers that lately
//! had frames are polled in every turn; of the others a few take their turn each time, so that none waits long for its first
//! frame to be seen.

use crate::port::{PortIndex, Rx};

/// Up to this many receivers, all are polled in every turn.
const FEW: usize = 16;
/// Idle receivers looked at in a turn. A thousand are then all seen within 125 turns, some tens of microseconds.
const IDLE_PER_TURN: usize = 8;
/// Empty polls after which a receiver counts as idle.
const PATIENCE: u32 = 256;

/// A receiver and its port.
pub(super) struct RxSlot {
    pub port: PortIndex,
    pub rx: Box<dyn Rx>,
    empty_polls: u32,
}

/// All receivers of a worker: the active ones first.
#[derive(Default)]
pub(super) struct Schedule {
    slots: Vec<RxSlot>,
    active: usize,
    next_idle: usize,
    all_next_turn: bool,
}

impl Schedule {
    pub fn add(&mut self, port: PortIndex, rx: Box<dyn Rx>) {
        self.slots.push(RxSlot { port, rx, empty_polls: 0 });
        self.promote(self.slots.len() - 1);
    }

    /// Takes the receivers of `port` out. The others stay as active as they are: to poll thousands that are idle until they have
    /// settled again would cost milliseconds.
    pub fn remove(&mut self, port: PortIndex) -> Vec<Box<dyn Rx>> {
        let (mut theirs, mut at) = (Vec::new(), 0);
        while at < self.slots.len() {
            if self.slots[at].port != port {
                at += 1;
                continue;
            }
            // The last active one takes the place of an active one, and the last idle one the place behind those.
            let mut hole = at;
            if at < self.active {
                self.active -= 1;
                self.slots.swap(at, self.active);
                hole = self.active;
            }
            theirs.push(self.slots.swap_remove(hole).rx);
        }
        theirs
    }

    /// Every receiver, not only those that are due, is polled in the next turn.
    pub fn all_next_turn(&mut self) {
        self.all_next_turn = true;
    }

    pub fn receivers(&mut self) -> impl Iterator<Item = &mut Box<dyn Rx>> {
        self.slots.iter_mut().map(|slot| &mut slot.rx)
    }

    /// Calls `poll`, which returns the number of frames it got, for each receiver that is due.
    #[inline]
    pub fn turn(&mut self, mut poll: impl FnMut(&mut RxSlot) -> usize) {
        if self.slots.len() <= FEW || std::mem::take(&mut self.all_next_turn) {
            for slot in &mut self.slots {
                poll(slot);
            }
            return;
        }
        self.turn_active(&mut poll);
        self.turn_some_idle(&mut poll);
    }

    fn turn_active(&mut self, poll: &mut impl FnMut(&mut RxSlot) -> usize) {
        // Backwards, so that a receiver swapped out of the active part has been polled already.
        for at in (0..self.active).rev() {
            let slot = &mut self.slots[at];
            if poll(slot) > 0 {
                slot.empty_polls = 0;
            } else {
                slot.empty_polls += 1;
                if slot.empty_polls > PATIENCE {
                    self.demote(at);
                }
            }
        }
    }

    fn turn_some_idle(&mut self, poll: &mut impl FnMut(&mut RxSlot) -> usize) {
        for _ in 0..IDLE_PER_TURN.min(self.slots.len() - self.active) {
            if self.next_idle < self.active || self.next_idle >= self.slots.len() {
                self.next_idle = self.active;
            }
            let at = self.next_idle;
            self.next_idle += 1;
            if poll(&mut self.slots[at]) > 0 {
                self.promote(at);
            }
        }
    }

    fn promote(&mut self, at: usize) {
        self.slots[at].empty_polls = 0;
        self.slots.swap(at, self.active);
        self.active += 1;
    }

    fn demote(&mut self, at: usize) {
        self.active -= 1;
        self.slots.swap(at, self.active);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::burst::Burst;
    use crate::port::{PortFault, RxContext};

    struct Silent;
    impl Rx for Silent {
        fn receive<'a>(&'a mut self, _: &mut Burst<'a>, _: &RxContext<'_>) -> Result<(), PortFault> {
            Ok(())
        }
        fn release(&mut self, _: u64) {}
    }

    fn schedule(ports: u16) -> Schedule {
        let mut schedule = Schedule::default();
        for port in 0..ports {
            schedule.add(PortIndex(port), Box::new(Silent));
        }
        schedule
    }

    fn polled_in_a_turn(schedule: &mut Schedule, busy: &[u16]) -> Vec<u16> {
        let mut polled = Vec::new();
        schedule.turn(|slot| {
            polled.push(slot.port.0);
            usize::from(busy.contains(&slot.port.0))
        });
        polled
    }

    #[test]
    fn among_many_ports_the_busy_are_polled_every_turn_and_the_idle_in_rotation() {
        let mut schedule = schedule(1000);
        for _ in 0..PATIENCE + 1 {
            polled_in_a_turn(&mut schedule, &[3, 700]);
        }
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..998_usize.div_ceil(IDLE_PER_TURN) {
            let polled = polled_in_a_turn(&mut schedule, &[3, 700]);
            assert_eq!(polled.len(), 2 + IDLE_PER_TURN);
            assert!(polled.contains(&3) && polled.contains(&700));
            seen.extend(polled);
        }
        assert_eq!(seen.len(), 1000, "every idle port had its turn");
    }

    #[test]
    fn an_idle_port_that_wakes_up_is_polled_every_turn_again() {
        let mut schedule = schedule(100);
        for _ in 0..PATIENCE + 1 {
            polled_in_a_turn(&mut schedule, &[]);
        }
        for _ in 0..100 {
            polled_in_a_turn(&mut schedule, &[50]);
        }
        assert!(polled_in_a_turn(&mut schedule, &[]).contains(&50));
    }

    #[test]
    fn when_a_port_is_removed_the_busy_stay_busy_and_the_idle_idle() {
        for gone in [3, 500, 999] {
            let mut schedule = schedule(1000);
            for _ in 0..PATIENCE + 1 {
                polled_in_a_turn(&mut schedule, &[3, 700]);
            }
            assert_eq!(schedule.remove(PortIndex(gone)).len(), 1);
            let busy: &[u16] = if gone == 3 { &[700] } else { &[3, 700] };
            let polled = polled_in_a_turn(&mut schedule, &[]);
            assert_eq!(polled.len(), busy.len() + IDLE_PER_TURN);
            assert!(busy.iter().all(|port| polled.contains(port)) && !polled.contains(&gone));
            schedule.all_next_turn();
            let mut all = polled_in_a_turn(&mut schedule, &[]);
            all.sort_unstable();
            assert_eq!(all, (0..1000).filter(|port| *port != gone).collect::<Vec<_>>());
        }
    }

    #[test]
    fn all_receivers_of_a_port_are_removed() {
        let mut schedule = schedule(20);
        for _ in 0..3 {
            schedule.add(PortIndex(7), Box::new(Silent));
        }
        assert_eq!(schedule.remove(PortIndex(7)).len(), 4);
        schedule.all_next_turn();
        assert!(!polled_in_a_turn(&mut schedule, &[]).contains(&7));
    }

    #[test]
    fn a_removed_port_is_polled_no_more_and_no_other_is_lost() {
        let mut schedule = schedule(40);
        assert_eq!(schedule.remove(PortIndex(7)).len(), 1);
        schedule.all_next_turn();
        let mut polled = polled_in_a_turn(&mut schedule, &[]);
        polled.sort_unstable();
        assert_eq!(polled, (0..40).filter(|p| *p != 7).collect::<Vec<_>>());
    }
}
