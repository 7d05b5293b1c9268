//! Messages between ranks by a library that stands in for NCCL: how it is found, called, and left.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod fake;

use std::time::{Duration, Instant};

use fake::Library;
use plimsoll_cuda::{Address, Message, Nccl, NcclError, Station, Stream};

/// What stands for a device's memory.
fn address(memory: &mut [f32]) -> Address {
    Address(memory.as_mut_ptr() as u64)
}

fn stations(memory: &mut [Vec<f32>]) -> Vec<Station> {
    let station = |(memory, gpu): (&mut Vec<f32>, u32)| Station {
        stream: Stream { gpu, handle: 0 },
        scratch: address(memory),
    };
    memory.iter_mut().zip(0..).map(station).collect()
}

/// Each rank sends all others two of its numbers; what each then has, by whom it is from.
fn exchanged(nccl: &Nccl, ranks: u64, round: f32) -> Vec<Vec<f32>> {
    let one = |rank: u64| {
        let mut mine: Vec<f32> = (0..2 * ranks)
            .map(|i| round + (10 * rank + i) as f32)
            .collect();
        let mut theirs = vec![-1.0; mine.len()];
        let (from, to) = (address(&mut mine), address(&mut theirs));
        let messages: Vec<Message> = (0..ranks)
            .flat_map(|peer| {
                [
                    Message::Send {
                        peer,
                        from: from.plus(8 * peer),
                        len: 2,
                    },
                    Message::Receive {
                        peer,
                        to: to.plus(8 * peer),
                        len: 2,
                    },
                ]
            })
            .collect();
        nccl.pass(rank as usize, &messages).unwrap();
        theirs
    };
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..ranks).map(|r| scope.spawn(move || one(r))).collect();
        all.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

fn wanted(ranks: u64, round: f32) -> Vec<Vec<f32>> {
    let of = |rank: u64| {
        let from = |peer: u64| [0, 1].map(|i| round + (10 * peer + 2 * rank + i) as f32);
        (0..ranks).flat_map(from).collect()
    };
    (0..ranks).map(of).collect()
}

#[test]
fn messages_reach_whom_they_are_for() {
    let library = Library::new(None);
    for ranks in [2_u64, 3, 8] {
        let mut memory = vec![vec![0.0; ranks as usize + 1]; ranks as usize];
        let nccl = Nccl::by(
            &["no-such-library.so", library.path()],
            stations(&mut memory),
        );
        let nccl = nccl.unwrap();
        assert_eq!(nccl.name(), "NCCL 2.21.5");
        for round in [0.0, 0.5] {
            assert_eq!(exchanged(&nccl, ranks, round), wanted(ranks, round));
        }
    }
}

#[test]
fn what_is_not_nccl_is_one_clear_error() {
    let missing = Nccl::by(&["no-such-library.so"], Vec::new()).unwrap_err();
    let said = missing.to_string();
    assert!(
        said.contains("libnccl.so.2") && said.contains("no-such-library.so"),
        "{said}"
    );
    let other = Nccl::by(&["libm.so.6"], Vec::new()).unwrap_err();
    assert!(
        matches!(other, NcclError::Function("ncclGetVersion")),
        "{other}"
    );
    // It refuses ranks that share a GPU.
    let library = Library::new(None);
    let mut memory = vec![vec![0.0; 3]; 2];
    let mut stations = stations(&mut memory);
    stations[1].stream.gpu = stations[0].stream.gpu;
    let refused = Nccl::by(&[library.path()], stations).unwrap_err();
    assert_eq!(refused.to_string(), "NCCL: ncclCommInitAll: invalid usage");
}

#[test]
fn whoever_waits_for_a_lost_rank_is_released_and_all_connect_again() {
    let library = Library::new(None);
    let mut memory = vec![vec![0.0; 3]; 2];
    let nccl = Nccl::by(&[library.path()], stations(&mut memory)).unwrap();
    for round in [0.0, 1.0, 2.0] {
        let mut to = [0.0];
        let (peer, len) = (1, 1);
        let waits = [Message::Receive {
            peer,
            to: address(&mut to),
            len,
        }];
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| nccl.pass(0, &waits));
            // Before or after it waits.
            if round > 0.0 {
                std::thread::sleep(Duration::from_millis(50));
            }
            let began = Instant::now();
            nccl.cut();
            assert!(waiting.join().unwrap().is_err());
            assert!(began.elapsed() < Duration::from_secs(20));
        });
        let cut = nccl.pass(1, &waits).unwrap_err();
        assert_eq!(cut, NcclError::Cut);
        nccl.connect().unwrap();
        assert_eq!(exchanged(&nccl, 2, round), wanted(2, round));
    }
}

#[test]
fn a_message_that_fails_is_named() {
    // It sends two where ranks are connected.
    let library = Library::new(Some(3));
    let mut memory = vec![vec![0.0; 3]; 2];
    let nccl = Nccl::by(&[library.path()], stations(&mut memory)).unwrap();
    let mut from = [1.0];
    let (peer, len) = (1, 1);
    let itself = [Message::Send {
        peer,
        from: address(&mut from),
        len,
    }];
    let failed = nccl.pass(1, &itself).unwrap_err();
    assert_eq!(
        failed.to_string(),
        "NCCL: a message: unhandled system error"
    );
}
