"""HardSigmoids between two 8-bit pairs: with scales that fit, their integers are those of their input, clipped."""

from collections.abc import Container, Mapping

from pdq_export.graph.lookup import GraphIndex, attribute
from pdq_export.spec import Point, Ramp, Role


def find_ramps(index: GraphIndex, points: Mapping[str, Point], excluded: Container[str] = ()) -> dict[str, Ramp]:
    """The ramps by output tensor, at most one for each source.

    A ramp is a HardSigmoid with beta = 0.5 from one carrier to a later one. ``excluded``: names of nodes that stay in
    float.
    """
    carriers: set[str] = set()
    ramps: dict[str, Ramp] = {}
    for tensor, point in points.items():
        if point.role is not Role.CARRIER or point.symmetric:
            continue
        node = index.producer.get(tensor)
        if (
            node is not None
            and node.op_type == "HardSigmoid"
            and node.name not in excluded
            and node.input[0] in carriers
        ):
            alpha, beta = attribute(node, "alpha", 0.2), attribute(node, "beta", 0.5)
            if alpha > 0 and beta == 0.5:
                alone = index.sole_consumer(node.input[0]) is node
                ramps[tensor] = Ramp(source=node.input[0], knee=0.5 / alpha, alone=alone)
                carriers.remove(node.input[0])
        carriers.add(tensor)
    return ramps
