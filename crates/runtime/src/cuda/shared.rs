//! What the blocks of kernels share, known before the first step: a device that has less says so at the start.

use std::collections::BTreeMap;

use plimsoll_cuda::DeviceError;
use plimsoll_program::{Op, WeightId, WeightLayout};

use super::Cuda;
use super::ops::{route_shared, shorten_shared};
use crate::backend::BackendError;

impl Cuda {
    /// Kernels whose blocks share memory that they are started with, and how many bytes at most, whatever steps there are.
    fn shares(&self) -> BTreeMap<&'static str, u64> {
        let mut all = BTreeMap::from([("shorten", shorten_shared(self.program.vocab))]);
        let mut add = |name, bytes: u64| {
            let most = all.entry(name).or_insert(0);
            *most = bytes.max(*most);
        };
        let form = |w: &WeightId| match self.program.weight(*w).layout {
            WeightLayout::Packed { form, .. } => Some(form),
            WeightLayout::F32 { .. } => None,
        };
        for op in &self.program.ops {
            let matrix = match op {
                Op::Attention(a) => {
                    let kernel = self.attend(a);
                    add(kernel.name, kernel.shared);
                    None
                }
                Op::Latent(a) => {
                    let kernel = self.attend_latents(a);
                    add(kernel.name, kernel.shared);
                    None
                }
                Op::Route { logits, groups, .. } => {
                    let experts = self.program.buffer(*logits).width;
                    let groups = groups.map_or(0, |g| g.count);
                    add("route", route_shared(experts, groups));
                    None
                }
                Op::Linear { weight, .. } => Some(weight),
                Op::Experts { weights, .. } | Op::Heads { weights, .. } => weights.first(),
                _ => None,
            };
            for (name, bytes) in matrix
                .and_then(form)
                .into_iter()
                .flat_map(|f| self.linear_shared(f))
            {
                add(name, bytes);
            }
        }
        all
    }

    /// Whether blocks can share what kernels are to be started with.
    pub(super) fn check_shares(&mut self) -> Result<(), BackendError> {
        let shares = self.shares();
        for (kernel, needs) in &shares {
            let has = self.device.most_shared(kernel)?;
            if *needs > has {
                return Err(DeviceError::Shared {
                    kernel: (*kernel).to_owned(),
                    needs: *needs,
                    has,
                }
                .into());
            }
        }
        self.shares = shares;
        Ok(())
    }
}
