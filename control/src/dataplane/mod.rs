//! What the packet engine shall hold, and making it so.
