"""The maths of alignment: pure functions of tensors, without process groups.

Notation used for tensor shapes:
    - T: tokens of a micro batch, documents laid end to end
    - D: documents of a micro batch
    - P: pairs of a better and a worse answer to one prompt
    - S: samples of a step, on all ranks: answers that a policy gave
    - N: response tokens of all samples, laid end to end
"""
