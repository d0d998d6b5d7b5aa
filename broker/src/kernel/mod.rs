//! The kernel half: loads, attaches and talks to the XDP and sk_reuseport programs.
