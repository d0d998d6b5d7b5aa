//! Records, connection IDs, packet parsers and verdicts shared by the kernel program and the host.
#![no_std]
