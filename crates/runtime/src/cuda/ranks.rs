//! Ranks on devices: how one of them adds up, and puts together, what all have.
//!
//! There are two ways, which come to the same bits. Through the host's memory ([`Meeting`]) any devices meet, several ranks
//! of one GPU among them. Ranks that have a GPU each pass messages by [`Nccl`]: each is sent a part of what the others
//! have, adds it up in the order of ranks, by a kernel, and sends the sums to all; where there is room for everything, it
//! is sent all, once. What NCCL itself would add up has an order that depends on how much it is.

use std::sync::Arc;

use plimsoll_cuda::{Address, Message, Nccl, Station, args, floats};
use plimsoll_program::{BufferId, Exchange, Rank};
use plimsoll_units::Bytes;

use super::ops::{Step, THREADS};
use super::{Cuda, elements, word};
use crate::backend::BackendError;
use crate::collective::{Collective, Lost, Meeting};

/// Bytes of an element.
const F32: u64 = 4;

/// Where a rank meets the others.
#[derive(Debug)]
pub(super) struct Seat {
    meeting: Box<dyn Collective>,
    nccl: Option<Arc<Nccl>>,
}

impl Seat {
    /// What went wrong here, or that it did because another rank was lost.
    fn blamed(&self, e: BackendError) -> BackendError {
        if self.meeting.is_lost() {
            return Lost.into();
        }
        e
    }
}

/// Ranks that meet each other from now on: through NCCL where it connects them, else through the host's memory.
#[must_use]
pub fn seated(ranks: Vec<Cuda>, nccl: Option<Arc<Nccl>>) -> (Vec<Cuda>, Meeting) {
    let meeting = Meeting::with_nccl(ranks.len(), nccl.clone());
    let ranks = ranks.into_iter().enumerate();
    let seated = ranks.map(|(rank, cuda)| Cuda {
        seat: Some(Seat {
            meeting: meeting.seat(rank),
            nccl: nccl.clone(),
        }),
        ..cuda
    });
    (seated.collect(), meeting)
}

impl Cuda {
    /// Where it works, for [`Nccl`].
    #[must_use]
    pub fn station(&self) -> Station {
        Station {
            stream: self.device.stream(),
            scratch: self.sums.at,
        }
    }

    fn seat(&mut self) -> Result<&mut Seat, BackendError> {
        let alone = || BackendError::Step("a rank without the others".to_owned());
        self.seat.as_mut().ok_or_else(alone)
    }

    fn nccl(&mut self) -> Result<Option<Arc<Nccl>>, BackendError> {
        self.seat().map(|s| s.nccl.clone())
    }

    /// Waits until this rank's part of a step is over, where it is one of several: what it cannot do is to be known before
    /// another waits for it without end.
    pub(super) fn ended(&mut self) -> Result<(), BackendError> {
        let Some(seat) = &self.seat else {
            return Ok(());
        };
        let done = self.device.wait().map_err(BackendError::from);
        done.map_err(|e| seat.blamed(e))
    }

    /// `x` becomes the sum of what all ranks have there.
    pub(super) fn all_reduce(&mut self, step: Step, x: BufferId) -> Result<(), BackendError> {
        let len = self.rows(x, step) * u64::from(self.width(x));
        let x = Address(self.buffer(x, step));
        if let Some(nccl) = self.nccl()? {
            return self.sum(&nccl, x, len);
        }
        let bytes = self.show(x, len)?;
        let shown = self.device.host(self.exchange.at, elements(bytes))?;
        // Found above.
        if let Some(seat) = &mut self.seat {
            seat.meeting.all_reduce(floats(shown)?)?;
        }
        Ok(self.device.copy(self.exchange.at, x, bytes)?)
    }

    /// Each row of `out` becomes those of all ranks' `x`, one after the other, as far as there is room.
    pub(super) fn all_gather(
        &mut self,
        step: Step,
        x: BufferId,
        out: BufferId,
    ) -> Result<(), BackendError> {
        let rows = self.rows(x, step);
        let (each, width) = (self.width(x), self.width(out));
        let [from, to] = [x, out].map(|b| Address(self.buffer(b, step)));
        if let Some(nccl) = self.nccl()? {
            return self.join(&nccl, [from, to], rows, [each, width]);
        }
        self.show(from, rows * u64::from(each))?;
        // Where logits will lie for whoever reads them there is room for all of them.
        let bytes = F32.saturating_mul(rows).saturating_mul(width.into());
        if bytes > self.logits.bytes.get() {
            return Err(BackendError::Step(
                "ranks put together more than was planned".to_owned(),
            ));
        }
        // What is shown, and then logits.
        let all = elements(self.exchange.bytes.get() + self.logits.bytes.get());
        let all = floats(self.device.host(self.exchange.at, all)?)?;
        let (shown, joined) = all.split_at_mut(elements(self.exchange.bytes.get() / F32));
        let (each, width) = (elements(each.into()), elements(width.into()));
        let rows = elements(rows);
        if let Some(seat) = &mut self.seat {
            let (shown, joined) = (&shown[..rows * each], &mut joined[..rows * width]);
            seat.meeting.all_gather(shown, joined, [each, width])?;
        }
        Ok(self.device.copy(self.logits.at, to, bytes)?)
    }

    /// Copies `len` elements to where the others see them; how many bytes they are.
    fn show(&mut self, x: Address, len: u64) -> Result<u64, BackendError> {
        let bytes = F32.saturating_mul(len);
        if bytes > self.exchange.bytes.get() {
            return Err(BackendError::Step(
                "ranks exchange more than was planned".to_owned(),
            ));
        }
        self.device.copy(x, self.exchange.at, bytes)?;
        self.exchange.mark(Bytes::new(bytes));
        Ok(bytes)
    }

    /// Begins messages, after all ranks have come to theirs.
    fn pass(&mut self, nccl: &Nccl, messages: &[Message]) -> Result<(), BackendError> {
        let rank = elements(self.program.rank.index);
        let seat = self.seat()?;
        seat.meeting.arrive()?;
        let begun = nccl.pass(rank, messages).map_err(BackendError::from);
        begun.map_err(|e| seat.blamed(e))
    }

    /// Where what `ranks` ranks have of `len` elements lies, the one of `rank`.
    fn summand(&self, rank: u64, len: u64) -> Address {
        self.sums.at.plus(F32 * rank * len)
    }

    /// Adds up by messages: as many elements at a time for each rank as there is room for.
    fn sum(&mut self, nccl: &Nccl, x: Address, len: u64) -> Result<(), BackendError> {
        let Rank { index, of } = self.program.rank;
        let room = self.sums.bytes.get() / F32;
        let whole = of.saturating_mul(len) <= room;
        let part = |rank| {
            if whole {
                0..len
            } else {
                Exchange::part(len, rank, of)
            }
        };
        let (mine, at) = (part(index), |i: u64| x.plus(F32 * i));
        let count = mine.end - mine.start;
        let mut messages = Vec::new();
        for peer in 0..of {
            let theirs = part(peer);
            messages.push(Message::Send {
                peer,
                from: at(theirs.start),
                len: theirs.end - theirs.start,
            });
            messages.push(Message::Receive {
                peer,
                to: self.summand(peer, count),
                len: count,
            });
        }
        self.pass(nccl, &messages)?;
        let a = args::SumRanks {
            parts: self.summands(of * count),
            out: at(mine.start).0,
            len: count,
            ranks: word(of),
            none: 0,
        };
        self.each("sum_ranks", count.div_ceil(THREADS.into()), a.bytes())?;
        if whole {
            return Ok(());
        }
        messages.clear();
        for peer in (0..of).filter(|peer| *peer != index) {
            let theirs = part(peer);
            messages.push(Message::Send {
                peer,
                from: at(mine.start),
                len: count,
            });
            messages.push(Message::Receive {
                peer,
                to: at(theirs.start),
                len: theirs.end - theirs.start,
            });
        }
        self.pass(nccl, &messages)
    }

    /// Puts rows together by messages: as many at a time as there is room for.
    fn join(
        &mut self,
        nccl: &Nccl,
        [x, out]: [Address; 2],
        rows: u64,
        [each, width]: [u32; 2],
    ) -> Result<(), BackendError> {
        let of = self.program.rank.of;
        let (x_row, out_row) = (u64::from(each), u64::from(width));
        let most = (self.sums.bytes.get() / F32) / (of * x_row).max(1);
        for from in (0..rows).step_by(elements(most.max(1))) {
            let some = most.min(rows - from);
            let len = some * x_row;
            let mut messages = Vec::new();
            for peer in 0..of {
                messages.push(Message::Send {
                    peer,
                    from: x.plus(F32 * from * x_row),
                    len,
                });
                messages.push(Message::Receive {
                    peer,
                    to: self.summand(peer, len),
                    len,
                });
            }
            self.pass(nccl, &messages)?;
            let a = args::JoinRanks {
                parts: self.summands(of * len),
                out: out.plus(F32 * from * out_row).0,
                rows: word(some),
                each,
                width,
                none: 0,
            };
            self.each("join_ranks", some, a.bytes())?;
        }
        Ok(())
    }

    /// Where what all ranks have lies, `len` elements, for a kernel.
    fn summands(&mut self, len: u64) -> u64 {
        self.sums.mark(Bytes::new(F32 * len));
        self.allow(self.sums.at, F32 * len);
        self.sums.at.0
    }
}
