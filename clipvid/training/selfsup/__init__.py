"""ConST-CL: self-supervised training on videos without captions or labels."""
