"""What the receiver and the gate service share: endpoints, connections within limits, and serving."""
