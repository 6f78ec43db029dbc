"""The names of GenEval's objects (COCO's 80 classes) and colours; arXiv 2310.11513."""

# COCO's groups, in COCO's order.
VEHICLES = ("bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat")
STREET = ("traffic light", "fire hydrant", "stop sign", "parking meter", "bench")
ANIMALS = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe")
ACCESSORIES = ("backpack", "umbrella", "handbag", "tie", "suitcase")
SPORTS = (
    "frisbee",
    "skis",
    "snowboard",
    "sports ball",
    "kite",
    "baseball bat",
    "baseball glove",
    "skateboard",
    "surfboard",
    "tennis racket",
)
TABLEWARE = ("bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl")
FOOD = ("banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake")
FURNITURE = ("chair", "couch", "potted plant", "bed", "dining table", "toilet")
ELECTRONICS = ("tv", "laptop", "computer mouse", "tv remote", "computer keyboard", "cell phone")
APPLIANCES = ("microwave", "oven", "toaster", "sink", "refrigerator")
INDOOR = ("book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush")
CLASSES = (
    "person",
    *VEHICLES,
    *STREET,
    *ANIMALS,
    *ACCESSORIES,
    *SPORTS,
    *TABLEWARE,
    *FOOD,
    *FURNITURE,
    *ELECTRONICS,
    *APPLIANCES,
    *INDOOR,
)

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")

RELATIONS = ("left of", "right of", "above", "below")

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")

# Other names of some classes in detectors: COCO's own, and Pascal VOC's, which many label files keep.
LABELS = {
    "mouse": "computer mouse",
    "remote": "tv remote",
    "keyboard": "computer keyboard",
    "motorbike": "motorcycle",
    "aeroplane": "airplane",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
    "tv monitor": "tv",
    "hair dryer": "hair drier",
}


def class_of(label: str) -> str | None:
    """Return GenEval's name of a detector's label, None if the label is none of the 80 classes."""
    name = label.strip().lower().replace("_", " ")
    name = LABELS.get(name, name)
    return name if name in CLASSES else None
