//! Rows: how often per second, how long, at what cost to the engine, and whether that is what was aimed at.

use std::time::Duration;

use serde_json::{Value, json};

#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) per_second: Option<f64>,
    /// p50, p99 and p99.9.
    pub(crate) latencies_us: Option<[f64; 3]>,
    pub(crate) cpu_us: Option<f64>,
    /// Anything else: what, how much, its unit.
    pub(crate) other: Option<(&'static str, f64, &'static str)>,
    pub(crate) target: Option<Target>,
}

/// What one of a row's figures should be: at most, or at least where more is better.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Target {
    CpuUs(f64),
    P50Us(f64),
    PerSecond(f64),
    OtherAtMost(f64),
    OtherAtLeast(f64),
}

impl Row {
    pub(crate) fn new(name: &str, mut latencies: Vec<Duration>, wall: Duration, cpu: Duration) -> Self {
        latencies.sort_unstable();
        let at = |part| percentile(&latencies, part);
        Self {
            latencies_us: Some([at(0.5), at(0.99), at(0.999)]),
            ..Self::counted(name, latencies.len() as u64, wall, cpu)
        }
    }

    /// Of operations that nobody waited for one by one.
    pub(crate) fn counted(name: &str, count: u64, wall: Duration, cpu: Duration) -> Self {
        Self {
            name: name.to_owned(),
            per_second: Some(count as f64 / wall.as_secs_f64()),
            cpu_us: Some(cpu.as_secs_f64() * 1e6 / count as f64),
            ..Self::default()
        }
    }

    /// Of several runs each figure's median.
    pub(crate) fn median(runs: &[Self]) -> Self {
        let of = |figure: &dyn Fn(&Self) -> Option<f64>| {
            let mut figures: Vec<f64> = runs.iter().filter_map(figure).collect();
            figures.sort_unstable_by(f64::total_cmp);
            figures.get(figures.len() / 2).copied()
        };
        let Some(first) = runs.first() else { return Self::default() };
        let latency = |index: usize| of(&|row| row.latencies_us.map(|all| all[index]));
        Self {
            per_second: of(&|row| row.per_second),
            latencies_us: latency(0).zip(latency(1)).zip(latency(2)).map(|((p50, p99), p999)| [p50, p99, p999]),
            cpu_us: of(&|row| row.cpu_us),
            other: first.other.map(|(what, value, unit)| {
                (what, of(&|row| row.other.map(|(_, value, _)| value)).unwrap_or(value), unit)
            }),
            ..first.clone()
        }
    }

    /// None where nothing was aimed at.
    fn is_met(&self) -> Option<bool> {
        let other = self.other.map(|(_, value, _)| value);
        let is = |figure: Option<f64>, good: &dyn Fn(f64) -> bool| figure.is_some_and(good);
        Some(match self.target? {
            Target::CpuUs(most) => is(self.cpu_us, &|figure| figure <= most),
            Target::P50Us(most) => is(self.latencies_us.map(|[p50, ..]| p50), &|figure| figure <= most),
            Target::PerSecond(least) => is(self.per_second, &|figure| figure >= least),
            Target::OtherAtMost(most) => is(other, &|figure| figure <= most),
            Target::OtherAtLeast(least) => is(other, &|figure| figure >= least),
        })
    }

    fn target(&self) -> String {
        let unit = self.other.map_or("", |(_, _, unit)| unit);
        match self.target {
            None => String::new(),
            Some(Target::CpuUs(most)) => format!("CPU ≤ {most} µs"),
            Some(Target::P50Us(most)) => format!("p50 ≤ {most} µs"),
            Some(Target::PerSecond(least)) => format!("≥ {least} per second"),
            Some(Target::OtherAtMost(most)) => format!("≤ {most} {unit}"),
            Some(Target::OtherAtLeast(least)) => format!("≥ {least} {unit}"),
        }
    }

    pub(crate) fn line(&self) -> String {
        let number = |value: Option<f64>| value.map_or(String::new(), digits);
        let [p50, p99, p999] = self.latencies_us.map_or([None; 3], |all| all.map(Some)).map(number);
        let other = self.other.map_or(String::new(), |(what, value, unit)| format!("{} {unit} {what}", digits(value)));
        let met = self.is_met().map_or("", |met| if met { "met" } else { "MISSED" });
        format!(
            "| {} | {} | {p50} | {p99} | {p999} | {} | {} | {} | {met} |",
            self.name,
            number(self.per_second),
            number(self.cpu_us),
            other.trim(),
            self.target().trim(),
        )
    }

    fn json(&self) -> Value {
        json!({
            "name": self.name, "per_second": self.per_second, "cpu_us": self.cpu_us,
            "latencies_us": self.latencies_us.map(|[p50, p99, p999]| json!({"p50": p50, "p99": p99, "p99.9": p999})),
            "other": self.other.map(|(what, value, unit)| json!({"what": what, "value": value, "unit": unit})),
            "target": self.target.map(|_| self.target().trim().to_owned()), "met": self.is_met(),
        })
    }
}

/// Of times in order, in microseconds.
pub(crate) fn percentile(sorted: &[Duration], part: f64) -> f64 {
    let index = (sorted.len() as f64 * part) as usize;
    sorted.get(index.min(sorted.len().saturating_sub(1))).map_or(f64::NAN, |time| time.as_secs_f64() * 1e6)
}

pub(crate) fn text(rows: &[Row]) -> String {
    let head = "| what | per second | p50 µs | p99 | p99.9 | engine CPU µs each | | target | |\n|---|---:|---:|---:|---:|---:|---|---|---|\n";
    head.to_owned() + &rows.iter().map(|row| row.line() + "\n").collect::<String>()
}

pub(crate) fn json(rows: &[Row]) -> String {
    let rows: Vec<Value> = rows.iter().map(Row::json).collect();
    serde_json::to_string_pretty(&rows).unwrap_or_default()
}

/// Three digits that mean something.
fn digits(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        0.0 => "0".to_owned(),
        value => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_several_runs_is_held_against_the_target() {
        let run = |cpu_us: f64, value: f64| Row {
            name: "x".into(),
            cpu_us: Some(cpu_us),
            other: Some(("of it", value, "%")),
            target: Some(Target::CpuUs(7.0)),
            ..Row::default()
        };
        let row = Row::median(&[run(9.0, 1.0), run(5.0, 3.0), run(6.5, 2.0)]);
        assert_eq!(row, run(6.5, 2.0));
        assert_eq!(row.is_met(), Some(true));
        assert_eq!(Row { target: Some(Target::OtherAtLeast(3.0)), ..row }.is_met(), Some(false));
    }

    #[test]
    fn percentiles_are_of_the_times_in_order() {
        let times: Vec<Duration> = (1..=1000).map(Duration::from_micros).collect();
        assert_eq!([0.5, 0.99, 0.999].map(|part| percentile(&times, part).round()), [501.0, 991.0, 1000.0]);
        assert!(percentile(&[], 0.5).is_nan());
    }
}
