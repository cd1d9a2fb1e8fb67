//! Numbers about the holder, as Prometheus text.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use daxfs::holder::message::ImageInfo;

use crate::table::Table;

/// Counters that the event loop writes and the HTTP thread reads.
#[derive(Debug)]
pub struct Metrics {
    started: Instant,
    /// Attaches that were answered with descriptors.
    pub attaches: AtomicU64,
    /// Requests that were refused.
    pub refusals: AtomicU64,
    /// Loads and swaps that were completed.
    pub loads: AtomicU64,
    /// Loads and swaps that failed.
    pub failed_loads: AtomicU64,
    /// Connections now.
    pub connections: AtomicU64,
    images: Mutex<Vec<ImageInfo>>,
}

impl Metrics {
    /// All zero, from now on.
    pub fn new() -> Self {
        Self {
            started: Instant::now(),
            attaches: AtomicU64::new(0),
            refusals: AtomicU64::new(0),
            loads: AtomicU64::new(0),
            failed_loads: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            images: Mutex::new(Vec::new()),
        }
    }

    /// Seconds since the start.
    pub fn uptime(&self) -> u64 {
        self.started.elapsed().as_secs()
    }

    /// Takes over what is held now.
    pub fn set_images(&self, table: &Table) {
        // A poisoned lock only means that another thread panicked while it read; the list itself is whole.
        let mut images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        *images = table.iter().map(|held| held.info.clone()).collect();
    }

    /// The text that Prometheus scrapes.
    pub fn render(&self) -> String {
        let mut out = String::new();
        let counters = [
            ("daxfs_attaches_total", "counter", "attaches answered", self.attaches.load(Ordering::Relaxed)),
            ("daxfs_refusals_total", "counter", "requests refused", self.refusals.load(Ordering::Relaxed)),
            ("daxfs_loads_total", "counter", "loads and swaps completed", self.loads.load(Ordering::Relaxed)),
            (
                "daxfs_failed_loads_total",
                "counter",
                "loads and swaps that failed",
                self.failed_loads.load(Ordering::Relaxed),
            ),
            ("daxfs_connections", "gauge", "connections now", self.connections.load(Ordering::Relaxed)),
            ("daxfs_uptime_seconds", "gauge", "seconds since the start", self.uptime()),
        ];
        for (name, kind, help, value) in counters {
            // Writing to a string does not fail.
            let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
        }
        let images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = write!(
            out,
            "# HELP daxfs_images images held\n# TYPE daxfs_images gauge\ndaxfs_images {}\n",
            images.len()
        );
        for (name, help) in
            [("daxfs_image_bytes", "bytes of an image"), ("daxfs_image_generation", "generation of an image")]
        {
            let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} gauge\n");
            for image in images.iter() {
                let value = if name == "daxfs_image_bytes" { image.size } else { image.generation };
                // Names hold nothing that needs escaping.
                let _ =
                    writeln!(out, "{name}{{name=\"{}\",kind=\"{}\"}} {value}", image.name, image.kind.name());
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_has_a_type_for_each_name() {
        let metrics = Metrics::new();
        metrics.attaches.store(7, Ordering::Relaxed);
        let text = metrics.render();
        assert!(text.contains("daxfs_attaches_total 7\n"), "{text}");
        let names = text.lines().filter(|line| !line.starts_with('#')).count();
        assert!(names <= text.matches("# TYPE").count());
        assert!(text.lines().all(|line| line.starts_with('#') || line.split(' ').count() == 2), "{text}");
    }
}
