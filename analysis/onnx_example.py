"""Classify images with an exported model: onnxruntime and numpy are all it needs.

python analysis/onnx_example.py model.onnx images.npy    uint8, (images, height, width, channels)
"""

import json
import sys

import numpy as np
import onnxruntime

model = onnxruntime.InferenceSession(sys.argv[1])
classes = json.loads(model.get_modelmeta().custom_metadata_map["classes"])
images = np.load(sys.argv[2])
for start in range(0, len(images), 256):
    (logits,) = model.run(["logits"], {"images": images[start : start + 256]})
    for row in logits:
        print(classes[row.argmax()])
