//! What a checkpoint says about itself.
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Where, when and how a checkpoint was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Meta {
    /// Seconds since 1970.
    pub created: u64,
    /// Version of Dormouse.
    pub writer: String,
    /// `uname -r`.
    pub kernel: String,
    /// Host name.
    pub host: String,
    /// Boot ID of the kernel, /proc/sys/kernel/random/boot_id.
    pub boot_id: String,
    /// How the process was reached: "attach" or "agent".
    pub door: String,
    /// Pause in nanoseconds, by the recorder's clock.
    pub pause_ns: u64,
    /// Features that the extended state uses (XCR0 bits).
    pub xfeatures: u64,
    /// CLOCK_MONOTONIC at the freeze, nanoseconds, as the program saw it.
    pub monotonic_ns: u64,
    /// CLOCK_BOOTTIME at the freeze, nanoseconds, as the program saw it; 0: not known.
    pub boottime_ns: u64,
    /// The caller's own: command line and options of the session.
    pub labels: BTreeMap<String, String>,
    /// What is not kept, each with what is lost.
    pub reported: Vec<String>,
}
