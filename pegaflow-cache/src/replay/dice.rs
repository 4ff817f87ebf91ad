// Copyright PegaFlow contributors.
// SPDX-License-Identifier: Apache-2.0

//! A small seeded generator of random numbers: the same seed gives the same workload on every machine.

/// SplitMix64 with the distributions a workload needs.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// A generator whose whole sequence follows from `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in the open interval (0, 1).
    pub fn unit(&mut self) -> f64 {
        ((self.bits() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    /// Uniform in `0..n`; 0 if `n` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(n)) >> 64) as u64
    }

    /// True with probability `p`.
    pub fn chance(&mut self, p: f64) -> bool {
        self.unit() < p
    }

    /// Standard normal (Box-Muller).
    pub fn normal(&mut self) -> f64 {
        (-2.0 * self.unit().ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// Exponential with the given mean.
    pub fn exponential(&mut self, mean: f64) -> f64 {
        -mean * self.unit().ln()
    }

    /// Log-normal with the given median and sigma (of the logarithm).
    pub fn log_normal(&mut self, median: f64, sigma: f64) -> f64 {
        median * (sigma * self.normal()).exp()
    }

    /// An index in `0..n` of which the first are the most popular: weight `1 / (i + 1)^skew`, inverted
    /// from the continuous distribution (close enough for popularity, and O(1)).
    pub fn zipf(&mut self, n: u64, skew: f64) -> u64 {
        let (u, end) = (self.unit(), n.max(1) as f64 + 1.0);
        let x = if (skew - 1.0).abs() < 1e-9 {
            end.powf(u)
        } else {
            let e = 1.0 - skew;
            (u * (end.powf(e) - 1.0) + 1.0).powf(1.0 / e)
        };
        (x as u64).clamp(1, n.max(1)) - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distributions_have_their_means() {
        let mut dice = Dice::new(1);
        let n = 100_000;
        let mut mean = |mut f: Box<dyn FnMut(&mut Dice) -> f64>| {
            (0..n).map(|_| f(&mut dice)).sum::<f64>() / f64::from(n)
        };
        assert!((mean(Box::new(|d| d.unit())) - 0.5).abs() < 0.01);
        assert!((mean(Box::new(|d| d.below(10) as f64)) - 4.5).abs() < 0.05);
        assert!(mean(Box::new(|d| d.normal())).abs() < 0.02);
        assert!((mean(Box::new(|d| d.exponential(3.0))) - 3.0).abs() < 0.05);
        assert!((mean(Box::new(|d| d.log_normal(1.0, 1.0).ln()))).abs() < 0.02);
        assert!((mean(Box::new(|d| f64::from(d.chance(0.2)))) - 0.2).abs() < 0.01);
        let top = mean(Box::new(|d| f64::from(d.zipf(100, 1.0) == 0)));
        assert!(
            (top - 0.15).abs() < 0.01,
            "ln 2 / ln 101 = 0.150, got {top}"
        );
    }
}
