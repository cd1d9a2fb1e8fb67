//! The verbs: one number for each message, which encoding and decoding share. Numbers are never used again for anything
//! else; a refusal ([`reply::ERROR`]) may answer every request.

/// What clients ask, and what answers it.
pub(super) mod request {
    /// Answer: ATTACHED.
    pub(crate) const ATTACH: u16 = 1;
    /// Answer: CURRENT.
    pub(crate) const CURRENT: u16 = 2;
    /// Answer: PAGE.
    pub(crate) const LIST: u16 = 3;
    /// Answer: PROGRESS and WARNING, then LOADED.
    pub(crate) const LOAD: u16 = 4;
    /// Answer: OK.
    pub(crate) const DROP: u16 = 5;
    /// Answer: OK.
    pub(crate) const STOP: u16 = 6;
    /// Answer: HEALTH.
    pub(crate) const HEALTH: u16 = 7;
    /// Answer: HANDOVER and HANDOVER_COPY, then SOCKET.
    pub(crate) const TAKEOVER: u16 = 8;
    /// Answer: OK.
    pub(crate) const TAKEOVER_DONE: u16 = 9;
    /// Answer: OK.
    pub(crate) const KEEP: u16 = 10;
    /// Answer: COPY, or OK where there is none.
    pub(crate) const COPY: u16 = 11;
    /// Answer: ACCESS.
    pub(crate) const ACCESS: u16 = 12;
    /// Answer: CURRENT, once the name means another image.
    pub(crate) const WATCH: u16 = 13;
}

/// What the holder answers: from 0x80 on.
pub(super) mod reply {
    pub(crate) const OK: u16 = 0x80;
    pub(crate) const ERROR: u16 = 0x81;
    pub(crate) const ATTACHED: u16 = 0x82;
    pub(crate) const CURRENT: u16 = 0x83;
    pub(crate) const PAGE: u16 = 0x84;
    pub(crate) const PROGRESS: u16 = 0x85;
    pub(crate) const LOADED: u16 = 0x86;
    pub(crate) const HEALTH: u16 = 0x87;
    pub(crate) const SOCKET: u16 = 0x88;
    pub(crate) const HANDOVER: u16 = 0x89;
    pub(crate) const COPY: u16 = 0x8a;
    pub(crate) const HANDOVER_COPY: u16 = 0x8b;
    pub(crate) const ACCESS: u16 = 0x8c;
    pub(crate) const WARNING: u16 = 0x8d;
}
